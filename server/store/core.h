// What stands behind Store: the pool, the shards of the index, and making room under pressure.
// Thread-safe. Order of locks: moving_mu_, then pressure_mu_, then the mutex of a shard or of the
// pool, never both of these at once.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/store/index_shard.h"
#include "server/store/slab_pool.h"
#include "server/store/store.h"

namespace fq {

class Store::Core {
 public:
  explicit Core(const StoreOptions& options);

  // `entry` is new and has no extents; it comes back with them.
  absl::StatusOr<std::shared_ptr<SlabEntry>> Reserve(std::shared_ptr<SlabEntry> entry,
                                                     size_t primary_bytes, size_t refinement_bytes,
                                                     Pressure pressure);
  void Expect(size_t primary_bytes, size_t refinement_bytes) {
    pool_.Expect(primary_bytes, refinement_bytes);
  }
  void Publish(SlabEntry& entry);
  void Abandon(const std::shared_ptr<SlabEntry>& entry);
  std::shared_ptr<SlabEntry> Pin(const SlabKey& key);
  std::shared_ptr<SlabEntry> PinUnused(const SlabKey& key);  // does not count as a use
  std::shared_ptr<SlabEntry> PinColdest();  // null: nothing unpinned; does not count as a use
  void Unpin(const std::shared_ptr<SlabEntry>& entry);
  bool DropRefinement(const SlabKey& key);
  bool Erase(const SlabKey& key);
  bool ErasePinned(const SlabEntry& entry) { return ShardOf(entry.key).ErasePinned(entry); }
  Fate FateOf(const SlabEntry& entry) const { return ShardOf(entry.key).FateOf(entry); }
  bool Holds(const SlabKey& key) const { return ShardOf(key).Holds(key); }
  void ForEachKey(uint64_t scope, const std::function<void(const SlabKey&)>& visit) const;
  bool on_host() const { return pool_.on_host(); }
  uint64_t used_bytes() const { return pool_.Usage().used_bytes; }
  uint64_t available_bytes() const;
  StoreStats Stats() const;
  absl::Status CheckInvariants() const;

 private:
  // Both extents or none.
  std::optional<Extents> Allocate(size_t primary_bytes, size_t refinement_bytes, Pressure pressure);
  std::optional<Extents> AllocateUnderPressure(size_t primary_bytes, size_t refinement_bytes)
      ABSL_LOCKS_EXCLUDED(pressure_mu_);
  bool CouldFit(size_t stored_bytes) const;
  bool FreeColdest(Victim kind);                  // false: no candidate
  IndexShard* ShardOfColdest(Victim kind) const;  // null: no candidate
  void Count(Victim kind, uint64_t stored_bytes);
  ShardTotals Totals() const;
  IndexShard& ShardOf(const SlabKey& key) const;
  uint64_t Tick() { return clock_.fetch_add(1, std::memory_order_relaxed); }

  SlabPool pool_;
  std::vector<std::unique_ptr<IndexShard>> shards_;
  std::atomic<uint64_t> clock_{1};

  // Shared by whatever moves extents between pool and index; CheckInvariants takes it alone, so
  // that it sees no extent on the way. Guards no field.
  mutable absl::Mutex moving_mu_;

  // Makes threads that are short of room take turns, so that none takes what another made. Guards
  // no field.
  absl::Mutex pressure_mu_ ABSL_ACQUIRED_AFTER(moving_mu_);

  std::atomic<uint64_t> evicted_slabs_{0}, evicted_bytes_{0};
  std::atomic<uint64_t> dropped_refinements_{0}, dropped_refinement_bytes_{0};
  std::atomic<uint64_t> rejected_full_{0};
};

}  // namespace fq
