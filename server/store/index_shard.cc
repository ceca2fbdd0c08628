#include "server/store/index_shard.h"

#include <utility>

namespace fq {

using State = SlabEntry::State;

namespace {

// By what removes slabs.
bool Reachable(const SlabEntry& entry) {
  return entry.state == State::kPublished || entry.origin == SlabEntry::Origin::kCopy;
}

}  // namespace

bool IndexShard::InsertFilling(const std::shared_ptr<SlabEntry>& entry) {
  absl::MutexLock lock(&mu_);
  if (!entries_.emplace(entry->key, entry).second) return false;
  ++totals_.reserved_slabs;
  return true;
}

Extents IndexShard::Abandon(const std::shared_ptr<SlabEntry>& entry) {
  absl::MutexLock lock(&mu_);
  const Extents freed{entry->primary, entry->refinement};
  if (entry->state == State::kDetached) {
    --totals_.pinned_slabs;
    detached_.erase(entry);
  } else {
    --totals_.reserved_slabs;
    entries_.erase(entry->key);
  }
  return freed;
}

void IndexShard::Publish(SlabEntry& entry, uint64_t tick) {
  absl::MutexLock lock(&mu_);
  if (entry.state == State::kDetached) return;
  entry.state = State::kPublished;
  --totals_.reserved_slabs;
  ++totals_.published_slabs;
  entry.last_use = tick;
  entry.pins = 1;
  ++totals_.pinned_slabs;
}

std::shared_ptr<SlabEntry> IndexShard::Pin(const SlabKey& key, std::optional<uint64_t> tick) {
  absl::MutexLock lock(&mu_);
  const auto it = entries_.find(key);
  if (it == entries_.end() || it->second->state != State::kPublished) return nullptr;
  SlabEntry& entry = *it->second;
  if (entry.pins++ == 0) {
    MakeUnevictable(entry);
    ++totals_.pinned_slabs;
  }
  if (tick) entry.last_use = *tick;
  return it->second;
}

std::shared_ptr<SlabEntry> IndexShard::PinColdest() {
  absl::MutexLock lock(&mu_);
  if (slabs_.empty()) return nullptr;
  SlabEntry& entry = *slabs_.begin()->second;
  MakeUnevictable(entry);
  ++totals_.pinned_slabs;
  entry.pins = 1;
  return entries_.find(entry.key)->second;
}

Extents IndexShard::Unpin(const std::shared_ptr<SlabEntry>& entry) {
  absl::MutexLock lock(&mu_);
  if (--entry->pins > 0) return {};
  --totals_.pinned_slabs;
  if (entry->state == State::kDetached) {
    const Extents freed{entry->primary, entry->refinement};
    detached_.erase(entry);
    return freed;
  }
  Extents freed;
  if (entry->drop_refinement) freed = TakeRefinement(*entry);
  MakeEvictable(*entry);
  return freed;
}

std::optional<Extents> IndexShard::DropRefinement(const SlabKey& key) {
  absl::MutexLock lock(&mu_);
  const auto it = entries_.find(key);
  if (it == entries_.end() || !Reachable(*it->second)) return std::nullopt;
  SlabEntry& entry = *it->second;
  if (entry.drop_refinement) return std::nullopt;
  if (entry.state == State::kPublished) {
    if (entry.refinement.empty()) return std::nullopt;
    if (entry.pins == 0) return TakeRefinement(entry);
  }
  entry.drop_refinement = true;
  return Extents{};
}

std::optional<Extents> IndexShard::Erase(const SlabKey& key) {
  absl::MutexLock lock(&mu_);
  const auto it = entries_.find(key);
  if (it == entries_.end() || !Reachable(*it->second)) return std::nullopt;
  if (it->second->state == State::kFilling) {
    DetachFilling(*it->second);
  } else if (it->second->pins == 0) {
    return RemoveUnpinned(*it->second);
  } else {
    Detach(*it->second);
  }
  return Extents{};
}

bool IndexShard::ErasePinned(const SlabEntry& entry) {
  absl::MutexLock lock(&mu_);
  const auto it = entries_.find(entry.key);
  if (it == entries_.end() || it->second.get() != &entry) return false;
  Detach(*it->second);
  return true;
}

Fate IndexShard::FateOf(const SlabEntry& entry) const {
  absl::MutexLock lock(&mu_);
  return {entry.state == State::kDetached, entry.drop_refinement};
}

bool IndexShard::Holds(const SlabKey& key) const {
  absl::MutexLock lock(&mu_);
  return entries_.contains(key);
}

std::optional<uint64_t> IndexShard::ColdestTick(Victim kind) const {
  absl::MutexLock lock(&mu_);
  const UseOrder& order = kind == Victim::kSlab ? slabs_ : refinements_;
  if (order.empty()) return std::nullopt;
  return order.begin()->first;
}

std::optional<Extents> IndexShard::TakeColdest(Victim kind) {
  absl::MutexLock lock(&mu_);
  const UseOrder& order = kind == Victim::kSlab ? slabs_ : refinements_;
  if (order.empty()) return std::nullopt;
  SlabEntry& coldest = *order.begin()->second;
  return kind == Victim::kSlab ? RemoveUnpinned(coldest) : TakeRefinement(coldest);
}

void IndexShard::AppendKeys(uint64_t scope, std::vector<SlabKey>& keys) const {
  absl::MutexLock lock(&mu_);
  for (const auto& [key, entry] : entries_) {
    if (key.scope == scope && entry->state == State::kPublished) keys.push_back(key);
  }
}

ShardTotals IndexShard::Totals() const {
  absl::MutexLock lock(&mu_);
  return totals_;
}

void IndexShard::MakeEvictable(SlabEntry& entry) {
  slabs_.emplace(entry.last_use, &entry);
  if (!entry.refinement.empty()) refinements_.emplace(entry.last_use, &entry);
  totals_.evictable_bytes += entry.stored_bytes();
}

void IndexShard::MakeUnevictable(SlabEntry& entry) {
  slabs_.erase(entry.last_use);
  refinements_.erase(entry.last_use);
  totals_.evictable_bytes -= entry.stored_bytes();
}

// The slab is unpinned. It keeps its place in the order of use.
Extents IndexShard::TakeRefinement(SlabEntry& entry) {
  if (refinements_.erase(entry.last_use) > 0) {
    totals_.evictable_bytes -= entry.refinement.stored_bytes();
  }
  entry.drop_refinement = false;
  return {{}, std::exchange(entry.refinement, {})};
}

Extents IndexShard::RemoveUnpinned(SlabEntry& entry) {
  MakeUnevictable(entry);
  --totals_.published_slabs;
  const Extents freed{entry.primary, entry.refinement};
  entries_.erase(SlabKey(entry.key));  // a copy: the entry dies with its place in the index
  return freed;
}

// The slab is published and pinned: its pins alone keep it from here on.
void IndexShard::Detach(SlabEntry& entry) {
  --totals_.published_slabs;
  MoveToDetached(entry);
}

// Its reservation is its pin.
void IndexShard::DetachFilling(SlabEntry& entry) {
  --totals_.reserved_slabs;
  ++totals_.pinned_slabs;
  entry.pins = 1;
  MoveToDetached(entry);
}

void IndexShard::MoveToDetached(SlabEntry& entry) {
  entry.state = State::kDetached;
  const auto it = entries_.find(entry.key);
  detached_.insert(std::move(it->second));
  entries_.erase(it);
}

}  // namespace fq
