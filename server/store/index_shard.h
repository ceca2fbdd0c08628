// One shard of the index: the slabs whose keys hash to it, their states, pins and order of use.
// Never touches the pool: it hands out what became free, and the caller frees it without the lock.
// Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/store/slab_entry.h"
#include "server/store/slab_pool.h"
#include "server/store/store.h"

namespace fq {

// What pressure takes from the coldest slab.
enum class Victim { kRefinement, kSlab };

struct ShardTotals {
  uint64_t published_slabs = 0;
  uint64_t reserved_slabs = 0;
  uint64_t pinned_slabs = 0;     // detached ones included
  uint64_t evictable_bytes = 0;  // of slabs that are published and unpinned
};

// Recounted over all entries.
struct ShardAudit {
  uint64_t stored_bytes = 0;
  uint64_t requested_bytes = 0;
};

// What becomes of a pinned slab when its last pin goes.
struct Fate {
  bool erased = false;
  bool refinement_dropped = false;
};

class IndexShard {
 public:
  IndexShard() = default;
  IndexShard(const IndexShard&) = delete;
  IndexShard& operator=(const IndexShard&) = delete;

  // False when the key is here in any state.
  bool InsertFilling(const std::shared_ptr<SlabEntry>& entry) ABSL_LOCKS_EXCLUDED(mu_);
  Extents Abandon(const std::shared_ptr<SlabEntry>& entry) ABSL_LOCKS_EXCLUDED(mu_);
  // Pins it as well. Nobody finds a copy that was erased meanwhile.
  void Publish(SlabEntry& entry, uint64_t tick) ABSL_LOCKS_EXCLUDED(mu_);

  // Null when the key is not published. `tick`, if any, is its last use from now on.
  std::shared_ptr<SlabEntry> Pin(const SlabKey& key, std::optional<uint64_t> tick)
      ABSL_LOCKS_EXCLUDED(mu_);
  Extents Unpin(const std::shared_ptr<SlabEntry>& entry) ABSL_LOCKS_EXCLUDED(mu_);

  // Pins the coldest of those that nobody pins; null when there is none. No use.
  std::shared_ptr<SlabEntry> PinColdest() ABSL_LOCKS_EXCLUDED(mu_);

  // Nothing: there was none. Empty extents: as soon as the slab is unpinned.
  std::optional<Extents> DropRefinement(const SlabKey& key) ABSL_LOCKS_EXCLUDED(mu_);
  std::optional<Extents> Erase(const SlabKey& key) ABSL_LOCKS_EXCLUDED(mu_);
  // The same for the slab that is pinned, if it is still the one under its key. Never empties it.
  bool ErasePinned(const SlabEntry& entry) ABSL_LOCKS_EXCLUDED(mu_);

  // Of a slab that is pinned.
  Fate FateOf(const SlabEntry& entry) const ABSL_LOCKS_EXCLUDED(mu_);

  // In any state.
  bool Holds(const SlabKey& key) const ABSL_LOCKS_EXCLUDED(mu_);

  // Last use of the coldest candidate, nothing when there is none.
  std::optional<uint64_t> ColdestTick(Victim kind) const ABSL_LOCKS_EXCLUDED(mu_);
  std::optional<Extents> TakeColdest(Victim kind) ABSL_LOCKS_EXCLUDED(mu_);

  void AppendKeys(uint64_t scope, std::vector<SlabKey>& keys) const ABSL_LOCKS_EXCLUDED(mu_);
  ShardTotals Totals() const ABSL_LOCKS_EXCLUDED(mu_);

  // Recounts everything; an error names the total that is wrong. REQUIRES: nobody moves extents.
  absl::StatusOr<ShardAudit> Audit() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void MakeEvictable(SlabEntry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void MakeUnevictable(SlabEntry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Extents TakeRefinement(SlabEntry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Extents RemoveUnpinned(SlabEntry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Detach(SlabEntry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void DetachFilling(SlabEntry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void MoveToDetached(SlabEntry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  ShardTotals Recount(ShardAudit& audit) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  mutable absl::Mutex mu_;
  absl::flat_hash_map<SlabKey, std::shared_ptr<SlabEntry>> entries_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_set<std::shared_ptr<SlabEntry>> detached_ ABSL_GUARDED_BY(mu_);

  // By last use, oldest first; ticks are unique. Only slabs that are published and unpinned, so
  // that pressure never walks over pinned ones.
  using UseOrder = absl::btree_map<uint64_t, SlabEntry*>;
  UseOrder slabs_ ABSL_GUARDED_BY(mu_);
  UseOrder refinements_ ABSL_GUARDED_BY(mu_);  // those that have one to drop
  ShardTotals totals_ ABSL_GUARDED_BY(mu_);
};

}  // namespace fq
