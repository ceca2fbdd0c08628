// The part of Store::Core that finds room: what is free, else refinements of the coldest unpinned
// slabs, else the coldest unpinned slabs.
#include <utility>

#include "server/store/core.h"

namespace fq {

std::optional<Extents> Store::Core::Allocate(size_t primary_bytes, size_t refinement_bytes,
                                             Pressure pressure) {
  std::optional<Extents> room = pool_.Allocate(primary_bytes, refinement_bytes);
  if (room || pressure == Pressure::kRefuse) return room;
  return AllocateUnderPressure(primary_bytes, refinement_bytes);
}

std::optional<Extents> Store::Core::AllocateUnderPressure(size_t primary_bytes,
                                                          size_t refinement_bytes) {
  absl::MutexLock one_at_a_time(&pressure_mu_);
  if (!CouldFit(Extent::Round(primary_bytes) + Extent::Round(refinement_bytes))) {
    return std::nullopt;
  }
  while (true) {
    if (auto room = pool_.Allocate(primary_bytes, refinement_bytes)) return room;
    if (!FreeColdest(Victim::kRefinement) && !FreeColdest(Victim::kSlab)) return std::nullopt;
  }
}

// A slab that cannot fit even with everything else evicted must not empty the store first. The
// evictable bytes are read first: what is erased between the two only makes this too hopeful.
bool Store::Core::CouldFit(size_t stored_bytes) const {
  const uint64_t evictable_bytes = Totals().evictable_bytes;
  const uint64_t used_bytes = pool_.Usage().used_bytes;
  const uint64_t fixed_bytes = used_bytes > evictable_bytes ? used_bytes - evictable_bytes : 0;
  return stored_bytes <= pool_.capacity_bytes() &&
         fixed_bytes <= pool_.capacity_bytes() - stored_bytes;
}

IndexShard* Store::Core::ShardOfColdest(Victim kind) const {
  IndexShard* coldest = nullptr;
  uint64_t coldest_tick = UINT64_MAX;
  for (const auto& shard : shards_) {
    const std::optional<uint64_t> tick = shard->ColdestTick(kind);
    if (!tick || *tick >= coldest_tick) continue;
    coldest = shard.get();
    coldest_tick = *tick;
  }
  return coldest;
}

std::shared_ptr<SlabEntry> Store::Core::PinColdest() {
  while (IndexShard* coldest = ShardOfColdest(Victim::kSlab)) {
    if (auto entry = coldest->PinColdest()) return entry;  // else pinned or erased since we looked
  }
  return nullptr;
}

bool Store::Core::FreeColdest(Victim kind) {
  while (true) {
    IndexShard* coldest = ShardOfColdest(kind);
    if (coldest == nullptr) return false;
    const std::optional<Extents> freed = coldest->TakeColdest(kind);
    if (!freed) continue;  // pinned or erased since we looked
    Count(kind, freed->stored_bytes());
    pool_.Free(*freed);
    return true;
  }
}

void Store::Core::Count(Victim kind, uint64_t stored_bytes) {
  const bool slab = kind == Victim::kSlab;
  (slab ? evicted_slabs_ : dropped_refinements_).fetch_add(1, std::memory_order_relaxed);
  (slab ? evicted_bytes_ : dropped_refinement_bytes_)
      .fetch_add(stored_bytes, std::memory_order_relaxed);
}

}  // namespace fq
