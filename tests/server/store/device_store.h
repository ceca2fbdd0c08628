// A store in device memory with the face of a host one, for tests/conformance: what is reserved is
// filled on the host and copied to the device when it is published, pins copy back what they read.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "server/store/store.h"
#include "tests/testing/check_cuda.h"

namespace fq {

class DeviceRoom {
 public:
  DeviceRoom() = default;
  explicit DeviceRoom(Reservation room)
      : room_(std::move(room)),
        primary_(room_.primary().size()),
        refinement_(room_.refinement().size()) {}
  absl::Span<std::byte> primary() { return absl::MakeSpan(primary_); }
  absl::Span<std::byte> refinement() { return absl::MakeSpan(refinement_); }

  void Publish() && {
    Copy(primary_, room_.primary());
    Copy(refinement_, room_.refinement());
    Check(cudaStreamSynchronize(nullptr));  // a copy of pageable memory returns when it is staged
    std::move(room_).Publish();
  }

 private:
  static void Copy(const std::vector<std::byte>& from, absl::Span<std::byte> to) {
    if (to.empty()) return;
    Check(cudaMemcpy(to.data(), from.data(), to.size(), cudaMemcpyHostToDevice));
  }

  Reservation room_;
  std::vector<std::byte> primary_, refinement_;
};

// One thread at a time.
class DevicePin {
 public:
  DevicePin() = default;
  explicit DevicePin(Pin pin) : pin_(std::move(pin)) {}
  explicit operator bool() const { return static_cast<bool>(pin_); }
  absl::Span<const std::byte> primary() const { return Read(pin_.primary(), primary_); }
  absl::Span<const std::byte> refinement() const { return Read(pin_.refinement(), refinement_); }
  const SlabKey& key() const { return pin_.key(); }
  const SlabTag& tag() const { return pin_.tag(); }
  uint64_t stored_bytes() const { return pin_.stored_bytes(); }

 private:
  static absl::Span<const std::byte> Read(absl::Span<const std::byte> from,
                                          std::vector<std::byte>& to) {
    to.resize(from.size());
    if (!from.empty()) {
      Check(cudaMemcpy(to.data(), from.data(), from.size(), cudaMemcpyDeviceToHost));
    }
    return to;
  }

  Pin pin_;
  mutable std::vector<std::byte> primary_, refinement_;
};

class DeviceStore {
 public:
  explicit DeviceStore(std::unique_ptr<Store> store) : store_(std::move(store)) {
    FQ_CHECK(!store_->on_host());
  }
  absl::StatusOr<DeviceRoom> Reserve(const SlabKey& key, const SlabTag& tag, size_t primary_bytes,
                                     size_t refinement_bytes) {
    auto room = store_->Reserve(key, tag, primary_bytes, refinement_bytes);
    if (!room.ok()) return room.status();
    return DeviceRoom(*std::move(room));
  }
  DevicePin Find(const SlabKey& key) { return DevicePin(store_->Find(key)); }
  bool Erase(const SlabKey& key) { return store_->Erase(key); }
  bool DropRefinement(const SlabKey& key) { return store_->DropRefinement(key); }
  void ForEachKey(uint64_t scope, const std::function<void(const SlabKey&)>& visit) const {
    store_->ForEachKey(scope, visit);
  }
  StoreStats Stats() const { return store_->Stats(); }
  absl::Status CheckInvariants() const { return store_->CheckInvariants(); }

 private:
  const std::unique_ptr<Store> store_;
};

}  // namespace fq
