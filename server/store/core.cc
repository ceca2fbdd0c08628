#include "server/store/core.h"

#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"

namespace fq {

Store::Core::Core(const StoreOptions& options) : pool_(options.space, options.capacity_bytes) {
  for (uint32_t i = 0; i < options.shards; ++i) shards_.push_back(std::make_unique<IndexShard>());
}

// High bits of the hash: the maps of the shards use the low ones.
IndexShard& Store::Core::ShardOf(const SlabKey& key) const {
  return *shards_[(absl::Hash<SlabKey>()(key) >> 40) & (shards_.size() - 1)];
}

absl::StatusOr<std::shared_ptr<SlabEntry>> Store::Core::Reserve(std::shared_ptr<SlabEntry> entry,
                                                                size_t primary_bytes,
                                                                size_t refinement_bytes,
                                                                Pressure pressure) {
  if (primary_bytes == 0) return absl::InvalidArgumentError("primary_bytes is 0, must be >= 1");
  IndexShard& shard = ShardOf(entry->key);
  absl::ReaderMutexLock moving(&moving_mu_);
  if (!shard.InsertFilling(entry)) {
    return absl::AlreadyExistsError("the slab is published or being filled");
  }
  const std::optional<Extents> room = Allocate(primary_bytes, refinement_bytes, pressure);
  if (!room) {
    shard.Abandon(entry);
    if (pressure == Pressure::kRefuse) {
      return absl::ResourceExhaustedError("no room without evicting");
    }
    rejected_full_.fetch_add(1, std::memory_order_relaxed);
    return absl::ResourceExhaustedError(
        absl::StrCat("no room for ", primary_bytes, " + ", refinement_bytes, " bytes in a pool of ",
                     pool_.capacity_bytes(), "; the rest is pinned or being filled"));
  }
  entry->primary = room->primary;
  entry->refinement = room->refinement;
  return entry;
}

void Store::Core::Publish(SlabEntry& entry) { ShardOf(entry.key).Publish(entry, Tick()); }

void Store::Core::Abandon(const std::shared_ptr<SlabEntry>& entry) {
  absl::ReaderMutexLock moving(&moving_mu_);
  pool_.Free(ShardOf(entry->key).Abandon(entry));
}

std::shared_ptr<SlabEntry> Store::Core::Pin(const SlabKey& key) {
  return ShardOf(key).Pin(key, Tick());
}

std::shared_ptr<SlabEntry> Store::Core::PinUnused(const SlabKey& key) {
  return ShardOf(key).Pin(key, std::nullopt);
}

void Store::Core::Unpin(const std::shared_ptr<SlabEntry>& entry) {
  absl::ReaderMutexLock moving(&moving_mu_);
  const Extents freed = ShardOf(entry->key).Unpin(entry);
  if (freed.primary.empty() && !freed.refinement.empty()) {
    Count(Victim::kRefinement, freed.stored_bytes());
  }
  pool_.Free(freed);
}

bool Store::Core::DropRefinement(const SlabKey& key) {
  absl::ReaderMutexLock moving(&moving_mu_);
  const std::optional<Extents> freed = ShardOf(key).DropRefinement(key);
  if (!freed) return false;
  if (!freed->refinement.empty()) Count(Victim::kRefinement, freed->stored_bytes());
  pool_.Free(*freed);
  return true;
}

bool Store::Core::Erase(const SlabKey& key) {
  absl::ReaderMutexLock moving(&moving_mu_);
  const std::optional<Extents> freed = ShardOf(key).Erase(key);
  if (freed) pool_.Free(*freed);
  return freed.has_value();
}

void Store::Core::ForEachKey(uint64_t scope,
                             const std::function<void(const SlabKey&)>& visit) const {
  for (const auto& shard : shards_) {
    std::vector<SlabKey> keys;
    shard->AppendKeys(scope, keys);
    for (const SlabKey& key : keys) visit(key);
  }
}

ShardTotals Store::Core::Totals() const {
  ShardTotals sum;
  for (const auto& shard : shards_) {
    const ShardTotals totals = shard->Totals();
    sum.published_slabs += totals.published_slabs;
    sum.reserved_slabs += totals.reserved_slabs;
    sum.pinned_slabs += totals.pinned_slabs;
    sum.evictable_bytes += totals.evictable_bytes;
  }
  return sum;
}

StoreStats Store::Core::Stats() const {
  const ShardTotals totals = Totals();
  const SlabPoolUsage usage = pool_.Usage();
  StoreStats stats;
  stats.capacity_bytes = pool_.capacity_bytes();
  stats.used_bytes = usage.used_bytes;
  stats.requested_bytes = usage.requested_bytes;
  stats.slabs = totals.published_slabs;
  stats.pinned_slabs = totals.pinned_slabs;
  stats.reserved_slabs = totals.reserved_slabs;
  stats.evicted_slabs = evicted_slabs_.load(std::memory_order_relaxed);
  stats.evicted_bytes = evicted_bytes_.load(std::memory_order_relaxed);
  stats.dropped_refinements = dropped_refinements_.load(std::memory_order_relaxed);
  stats.dropped_refinement_bytes = dropped_refinement_bytes_.load(std::memory_order_relaxed);
  stats.rejected_full = rejected_full_.load(std::memory_order_relaxed);
  return stats;
}

uint64_t Store::Core::available_bytes() const {
  const SlabPoolUsage usage = pool_.Usage();
  return pool_.capacity_bytes() - usage.resident_bytes + usage.idle_bytes;
}

absl::Status Store::Core::CheckInvariants() const {
  absl::WriterMutexLock still(&moving_mu_);
  if (absl::Status status = pool_.CheckInvariants(); !status.ok()) return status;
  ShardAudit sum;
  for (const auto& shard : shards_) {
    const absl::StatusOr<ShardAudit> audit = shard->Audit();
    if (!audit.ok()) return audit.status();
    sum.stored_bytes += audit->stored_bytes;
    sum.requested_bytes += audit->requested_bytes;
  }
  const SlabPoolUsage usage = pool_.Usage();
  if (sum.stored_bytes == usage.used_bytes && sum.requested_bytes == usage.requested_bytes) {
    return absl::OkStatus();
  }
  return absl::InternalError(absl::StrCat(
      "the pool holds ", usage.used_bytes, " bytes (", usage.requested_bytes,
      " requested), the slabs of the index ", sum.stored_bytes, " (", sum.requested_bytes, ")"));
}

}  // namespace fq
