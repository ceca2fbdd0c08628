// The tiers of a node: slabs in the memory of a GPU, if there is one, and in host memory. A slab
// may be in both; then the bytes of both are the same, and the one on the device is what is found.
// As the device fills, a thread of its own moves the coldest slabs to the host, as they are; who
// wants room meanwhile may wait for it.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "kernels/device.h"
#include "server/clock.h"
#include "server/store/store.h"

namespace fq {

enum class Tier : uint8_t { kDevice, kHost };

struct TiersOptions {
  StoreOptions host;
  std::optional<StoreOptions> device = std::nullopt;  // none: a node without a GPU
  // Copy what is demoted, in turns: with two, one batch is made ready or published while another is
  // copied. Outlived by their Device. None: the device evicts, nothing is demoted.
  std::vector<std::unique_ptr<DeviceQueue>> moves = {};
  // Shares of the device's capacity, 0 < low <= high <= 1: past the high one slabs are demoted
  // until the low one is reached. Below it too while, by holes between slabs of other sizes, less
  // than a 64th could be had by any size. When the host has no room either, the device evicts.
  double high_watermark = 0.9, low_watermark = 0.8;
  uint32_t most_waiting = 1;  // threads that may wait for room at the same time
};

struct TierStats {
  StoreStats host;
  StoreStats device;                                // zeros without one
  uint64_t demoted_slabs = 0, demoted_bytes = 0;    // counters: left the device for the host
  uint64_t failed_demotions = 0;                    // counter: batches whose copies failed
  uint64_t waits = 0;                               // counter: for room that demotion makes
  uint64_t promoted_slabs = 0, promoted_bytes = 0;  // counters: room reserved by ReserveCopy
};

// Thread-safe. Outlives its reservations and pins.
class Tiers {
 public:
  // InvalidArgument names the option and both values.
  static absl::StatusOr<std::unique_ptr<Tiers>> Create(TiersOptions options);
  ~Tiers();

  bool has_device() const { return device() != nullptr; }

  // For figures and tests; what changes slabs goes through the functions below.
  const Store& host() const { return *host_; }
  const Store* device() const { return device_dropped_ ? nullptr : device_.get(); }

  // On the device, else on the host: Pin::on_host() says where. As Store::Find and Peek.
  Pin Find(const SlabKey& key);
  Pin Peek(const SlabKey& key);

  // As Store::Reserve, and AlreadyExists too when the other tier holds the slab, published or being
  // filled. FailedPrecondition: kDevice without a device. Rather than evict from the device it
  // waits until `wait_until` for demotion to make room, while demotion gets on and not too many
  // wait.
  absl::StatusOr<Reservation> Reserve(Tier tier, const SlabKey& key, const SlabTag& tag,
                                      size_t primary_bytes, size_t refinement_bytes,
                                      MonotonicTime wait_until = {});

  // Room on the device for a slab that is pinned on the host; once it is published the device's
  // copy is found. The host's stays until it is evicted. Without room for a refinement when the
  // slab is about to lose its own. As Store::ReserveCopy; FailedPrecondition: no device. Waits as
  // Reserve does.
  absl::StatusOr<Reservation> ReserveCopy(const Pin& host_pin, MonotonicTime wait_until = {});

  // In both tiers; false when in neither. As Store::Erase and DropRefinement.
  bool Erase(const SlabKey& key);
  bool DropRefinement(const SlabKey& key);

  // Each published slab of a scope once. As Store::ForEachKey.
  void ForEachKey(uint64_t scope, const std::function<void(const SlabKey&)>& visit) const;

  TierStats Stats() const;

  // Of both stores.
  absl::Status CheckInvariants() const;

  // The device is lost: from here on it holds nothing, takes nothing and demotes nothing. Pins and
  // reservations of its slabs stay valid objects.
  void DropDevice() { device_dropped_ = true; }

 private:
  struct Move {
    Pin from;
    Reservation to;
  };
  // Slabs whose copies are queued together.
  struct Batch {
    DeviceQueue* queue = nullptr;
    std::vector<Move> moves;
    uint64_t bytes = 0;
    size_t left = 0;  // slabs that have left the device
    absl::Status status;
  };

  Tiers(std::unique_ptr<Store> host, std::unique_ptr<Store> device, TiersOptions& options);
  absl::StatusOr<Reservation> ReserveIn(Store* store, Store* other, const SlabKey& key,
                                        const SlabTag& tag, size_t primary_bytes,
                                        size_t refinement_bytes, Pressure pressure);
  absl::StatusOr<Reservation> ReserveOnDevice(
      MonotonicTime wait_until,
      const std::function<absl::StatusOr<Reservation>(Pressure)>& reserve);
  Store* OnDevice() const { return device_dropped_ ? nullptr : device_.get(); }  // null: none
  absl::Mutex& MutexOf(const SlabKey& key) const;

  // tiers_demotion.cc
  void StartDemotion(const TiersOptions& options);
  void StopDemotion();
  void WakeDemotion() ABSL_LOCKS_EXCLUDED(demotion_mu_);
  void DemoteUntilStopped();
  bool IsShort() const;                                    // of room: demotion begins
  bool HasRoom(uint64_t leaving_bytes) const;              // without those: demotion ends
  bool AwaitPressure() ABSL_LOCKS_EXCLUDED(demotion_mu_);  // false: stop
  bool Pause() ABSL_LOCKS_EXCLUDED(demotion_mu_);          // false: stop
  bool DemoteToLowWatermark();                             // false: stop
  Batch StartBatch(DeviceQueue& queue, uint64_t leaving_bytes);
  void FinishBatch(Batch& batch);
  absl::StatusOr<Reservation> ReserveBelow(const Pin& pin);
  absl::Status QueueCopies(const Move& move, DeviceQueue& queue);
  bool TakeFromDevice(const Pin& pin);
  void ExpectBelow(size_t primary_bytes, size_t refinement_bytes) ABSL_LOCKS_EXCLUDED(expected_mu_);
  // Until demotion has made some room since `rounds` was read: false when nothing is to be waited
  // for any more.
  bool AwaitRoom(uint64_t rounds, MonotonicTime until) ABSL_LOCKS_EXCLUDED(demotion_mu_);
  void EndRound(bool made_room) ABSL_LOCKS_EXCLUDED(demotion_mu_);

  const std::unique_ptr<Store> host_;
  const std::unique_ptr<Store> device_;  // null without a device
  std::atomic<bool> device_dropped_{false};
  std::atomic<uint64_t> promoted_slabs_{0}, promoted_bytes_{0};

  const std::vector<std::unique_ptr<DeviceQueue>> moves_;  // of the demotion thread
  const uint32_t most_waiting_;
  // Of the device's capacity; set before the thread starts.
  uint64_t high_bytes_ = 0, low_bytes_ = 0, least_available_bytes_ = 0;
  std::atomic<uint64_t> demoted_slabs_{0}, demoted_bytes_{0}, failed_demotions_{0}, waits_{0};
  absl::Mutex expected_mu_;
  absl::flat_hash_set<size_t> expected_ ABSL_GUARDED_BY(expected_mu_);  // sizes known on the host
  std::atomic<uint64_t> rounds_{0};  // of demotion that made room
  std::atomic<uint32_t> waiting_{0};
  absl::Mutex demotion_mu_;
  absl::CondVar wake_, round_ended_;
  bool stopping_ ABSL_GUARDED_BY(demotion_mu_) = false;
  bool stuck_ ABSL_GUARDED_BY(demotion_mu_) = false;  // the last round made no room
  std::thread demotion_;

  // Whoever reserves or removes the slabs of a key holds the mutex of the key over both stores, so
  // that no slab gets into both but as a copy, and no copy outlives an Erase. Guards no field.
  static constexpr size_t kMutexes = 64;
  mutable std::array<absl::Mutex, kMutexes> mutexes_;
};

}  // namespace fq
