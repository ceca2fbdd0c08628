// The tiers of a node: slabs in the memory of a GPU, if there is one, and in host memory. A slab
// may be in both; then the bytes of both are the same, and the one on the device is what is found.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kernels/device.h"
#include "server/store/store.h"

namespace fq {

enum class Tier : uint8_t { kDevice, kHost };

struct TiersOptions {
  StoreOptions host;
  std::optional<StoreOptions> device;  // none: a node without a GPU
};

struct TierStats {
  StoreStats host;
  StoreStats device;                                // zeros without one
  uint64_t demoted_slabs = 0, demoted_bytes = 0;    // counters: from the device to the host
  uint64_t promoted_slabs = 0, promoted_bytes = 0;  // counters: room reserved by ReserveCopy
};

// Thread-safe. Outlives its reservations and pins.
class Tiers {
 public:
  // InvalidArgument names the option and both values.
  static absl::StatusOr<std::unique_ptr<Tiers>> Create(const TiersOptions& options);

  bool has_device() const { return device() != nullptr; }

  // For figures and tests; what changes slabs goes through the functions below.
  const Store& host() const { return *host_; }
  const Store* device() const { return device_dropped_ ? nullptr : device_.get(); }

  // On the device, else on the host: Pin::on_host() says where. As Store::Find and Peek.
  Pin Find(const SlabKey& key);
  Pin Peek(const SlabKey& key);

  // As Store::Reserve, and AlreadyExists too when the other tier holds the slab, published or being
  // filled. FailedPrecondition: kDevice without a device.
  absl::StatusOr<Reservation> Reserve(Tier tier, const SlabKey& key, const SlabTag& tag,
                                      size_t primary_bytes, size_t refinement_bytes);

  // Room on the device for a slab that is pinned on the host; once it is published the device's
  // copy is found. The host's stays until it is evicted. Without room for a refinement when the
  // slab is about to lose its own. As Store::ReserveCopy; FailedPrecondition: no device.
  absl::StatusOr<Reservation> ReserveCopy(const Pin& host_pin);

  // In both tiers; false when in neither. As Store::Erase and DropRefinement.
  bool Erase(const SlabKey& key);
  bool DropRefinement(const SlabKey& key);

  // Each published slab of a scope once. As Store::ForEachKey.
  void ForEachKey(uint64_t scope, const std::function<void(const SlabKey&)>& visit) const;

  TierStats Stats() const;

  // Of both stores.
  absl::Status CheckInvariants() const;

  // The device is lost: from here on it holds nothing and takes nothing. Pins and reservations of
  // its slabs stay valid objects.
  void DropDevice() { device_dropped_ = true; }

 private:
  Tiers(std::unique_ptr<Store> host, std::unique_ptr<Store> device);
  absl::StatusOr<Reservation> ReserveIn(Store* store, Store* other, const SlabKey& key,
                                        const SlabTag& tag, size_t primary_bytes,
                                        size_t refinement_bytes);
  Store* OnDevice() const { return device_dropped_ ? nullptr : device_.get(); }  // null: none
  absl::Mutex& MutexOf(const SlabKey& key) const;

  const std::unique_ptr<Store> host_;
  const std::unique_ptr<Store> device_;  // null without a device
  std::atomic<bool> device_dropped_{false};
  std::atomic<uint64_t> promoted_slabs_{0}, promoted_bytes_{0};

  // Whoever reserves or removes the slabs of a key holds the mutex of the key over both stores, so
  // that no slab gets into both but as a copy, and no copy outlives an Erase. Guards no field.
  static constexpr size_t kMutexes = 64;
  mutable std::array<absl::Mutex, kMutexes> mutexes_;
};

}  // namespace fq
