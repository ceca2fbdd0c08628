// The part of IndexShard that recounts what the rest of it keeps up to date.
#include "absl/strings/str_cat.h"
#include "server/store/index_shard.h"

namespace fq {
namespace {

absl::Status Disagree(const char* what, uint64_t total, uint64_t recount) {
  return absl::InternalError(absl::StrCat("index: ", what, " is ", total, ", recounted ", recount));
}

absl::Status Compare(const ShardTotals& kept, const ShardTotals& recount) {
  if (kept.published_slabs != recount.published_slabs) {
    return Disagree("published_slabs", kept.published_slabs, recount.published_slabs);
  }
  if (kept.reserved_slabs != recount.reserved_slabs) {
    return Disagree("reserved_slabs", kept.reserved_slabs, recount.reserved_slabs);
  }
  if (kept.pinned_slabs != recount.pinned_slabs) {
    return Disagree("pinned_slabs", kept.pinned_slabs, recount.pinned_slabs);
  }
  if (kept.evictable_bytes != recount.evictable_bytes) {
    return Disagree("evictable_bytes", kept.evictable_bytes, recount.evictable_bytes);
  }
  return absl::OkStatus();
}

}  // namespace

ShardTotals IndexShard::Recount(ShardAudit& audit) const {
  ShardTotals recount;
  for (const auto& [key, entry] : entries_) {
    audit.stored_bytes += entry->stored_bytes();
    audit.requested_bytes += entry->requested_bytes();
    const bool published = entry->state == SlabEntry::State::kPublished;
    ++(published ? recount.published_slabs : recount.reserved_slabs);
    if (entry->pins > 0) ++recount.pinned_slabs;
    if (published && entry->pins == 0) recount.evictable_bytes += entry->stored_bytes();
  }
  for (const auto& entry : detached_) {
    audit.stored_bytes += entry->stored_bytes();
    audit.requested_bytes += entry->requested_bytes();
    ++recount.pinned_slabs;
  }
  return recount;
}

absl::StatusOr<ShardAudit> IndexShard::Audit() const {
  absl::MutexLock lock(&mu_);
  ShardAudit audit;
  const ShardTotals recount = Recount(audit);
  if (absl::Status status = Compare(totals_, recount); !status.ok()) return status;
  uint64_t unpinned = 0, droppable = 0;
  for (const auto& [key, entry] : entries_) {
    if (entry->state != SlabEntry::State::kPublished || entry->pins > 0) continue;
    ++unpinned;
    if (!entry->refinement.empty()) ++droppable;
  }
  if (slabs_.size() != unpinned) return Disagree("slabs in LRU order", slabs_.size(), unpinned);
  if (refinements_.size() != droppable) {
    return Disagree("refinements in LRU order", refinements_.size(), droppable);
  }
  return audit;
}

}  // namespace fq
