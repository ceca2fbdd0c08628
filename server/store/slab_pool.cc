#include "server/store/slab_pool.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace fq {
namespace {

void Refile(Chunk* chunk, bool belongs, std::set<Chunk*>& set) {
  if (belongs) {
    set.insert(chunk);
  } else {
    set.erase(chunk);
  }
}

absl::Status Disagree(const char* what, uint64_t total, uint64_t sum) {
  return absl::InternalError(
      absl::StrCat("pool: ", what, " is ", total, " but the chunks add up to ", sum));
}

}  // namespace

// Something that is done to a chunk: at its end the totals of the pool and the sets of the class
// are those of the chunk again.
class SlabPool::Change {
 public:
  Change(SlabPoolUsage& usage, SizeClass& size_class, Chunk* chunk)
      : usage_(usage), size_class_(size_class), chunk_(chunk) {
    usage_.idle_bytes -= chunk_->idle_bytes();
    usage_.resident_bytes -= chunk_->resident_bytes();
  }
  ~Change() {
    usage_.idle_bytes += chunk_->idle_bytes();
    usage_.resident_bytes += chunk_->resident_bytes();
    Refile(chunk_, chunk_->has_ready(), size_class_.with_ready);
    Refile(chunk_, chunk_->has_fresh(), size_class_.with_fresh);
    Refile(chunk_, chunk_->idle_bytes() > 0, size_class_.with_idle);
  }

 private:
  SlabPoolUsage& usage_;
  SizeClass& size_class_;
  Chunk* const chunk_;
};

std::optional<Extents> SlabPool::Allocate(size_t primary_bytes, size_t refinement_bytes) {
  if (primary_bytes > capacity_bytes_ || refinement_bytes > capacity_bytes_ - primary_bytes) {
    return std::nullopt;
  }
  Extents room;
  size_t missing_bytes = 0;
  absl::MutexLock lock(&mu_);
  // Quickly, because pressure asks again and again; slots of one size may share a granule.
  const bool one_size = Extent::Round(primary_bytes) == Extent::Round(refinement_bytes);
  if (!CouldMakeRoom(MissingBytes(primary_bytes) +
                     (one_size ? 0 : MissingBytes(refinement_bytes)))) {
    return std::nullopt;
  }
  if (Take(primary_bytes, room.primary, missing_bytes) &&
      Take(refinement_bytes, room.refinement, missing_bytes) && MakeRoom(missing_bytes) &&
      Commit(room.primary) && Commit(room.refinement)) {
    Count(room.primary);
    Count(room.refinement);
    return room;
  }
  Give(room.primary);
  Give(room.refinement);
  return std::nullopt;
}

void SlabPool::Expect(size_t primary_bytes, size_t refinement_bytes) {
  absl::MutexLock lock(&mu_);
  ExpectSize(primary_bytes);
  ExpectSize(refinement_bytes);
}

void SlabPool::ExpectSize(size_t bytes) {
  const size_t slot_bytes = Extent::Round(bytes);
  if (bytes == 0 || slot_bytes > capacity_bytes_ || classes_.contains(slot_bytes)) return;
  auto size_class = std::make_unique<SizeClass>();
  Chunk* const chunk = ChunkWithFreeSlot(*size_class, slot_bytes);
  if (chunk == nullptr) return;
  { const Change files(usage_, *size_class, chunk); }
  classes_[slot_bytes] = std::move(size_class);
}

void SlabPool::Free(const Extents& extents) {
  if (extents.primary.empty() && extents.refinement.empty()) return;
  absl::MutexLock lock(&mu_);
  for (const Extent& extent : {extents.primary, extents.refinement}) {
    Uncount(extent);
    Give(extent);
  }
}

size_t SlabPool::MissingBytes(size_t bytes) const {
  if (bytes == 0) return 0;
  const size_t slot_bytes = Extent::Round(bytes);
  const auto it = classes_.find(slot_bytes);
  if (it != classes_.end()) {
    if (!it->second->with_ready.empty()) return 0;
    const std::set<Chunk*>& with_fresh = it->second->with_fresh;
    if (!with_fresh.empty()) return (*with_fresh.begin())->NextMissingBytes();
  }
  return Chunk::RoundUp(slot_bytes, space_->granule_bytes());
}

bool SlabPool::Take(size_t bytes, Extent& extent, size_t& missing_bytes) {
  if (bytes == 0) return true;
  const size_t slot_bytes = Extent::Round(bytes);
  std::unique_ptr<SizeClass>& size_class = classes_[slot_bytes];
  if (size_class == nullptr) size_class = std::make_unique<SizeClass>();
  Chunk* chunk = ChunkWithFreeSlot(*size_class, slot_bytes);
  if (chunk == nullptr) {
    if (size_class->chunks.empty()) classes_.erase(slot_bytes);
    return false;
  }
  const Change change(usage_, *size_class, chunk);
  const Chunk::Taken taken = chunk->Take();
  missing_bytes += taken.missing_bytes;
  extent = Extent{chunk->data(taken.slot), bytes, chunk, taken.slot};
  return true;
}

Chunk* SlabPool::ChunkWithFreeSlot(SizeClass& size_class, size_t slot_bytes) {
  if (!size_class.with_ready.empty()) return *size_class.with_ready.begin();
  if (!size_class.with_fresh.empty()) return *size_class.with_fresh.begin();
  std::unique_ptr<Chunk> reserved =
      Chunk::Reserve(space_.get(), slot_bytes, std::max<size_t>(1, capacity_bytes_ / slot_bytes));
  Chunk* chunk = reserved.get();
  if (chunk != nullptr) size_class.chunks.emplace(chunk, std::move(reserved));
  return chunk;
}

bool SlabPool::CouldMakeRoom(size_t bytes) const {
  return usage_.resident_bytes + bytes <= capacity_bytes_ + usage_.idle_bytes;
}

// Takes idle memory from other sizes until `bytes` more fit; takes none when all of it is too
// little, for then the caller evicts, and what is idle may be just what that size needs next.
bool SlabPool::MakeRoom(size_t bytes) {
  if (!CouldMakeRoom(bytes)) return false;
  while (usage_.resident_bytes + bytes > capacity_bytes_) {
    if (!ReleaseOneIdle()) return false;
  }
  return true;
}

// A space may have less than the capacity: then what is idle is taken all the same.
bool SlabPool::Commit(const Extent& extent) {
  if (extent.empty()) return true;
  SizeClass& size_class = *classes_.at(extent.stored_bytes());
  while (true) {
    {
      const Change change(usage_, size_class, extent.chunk);
      if (extent.chunk->Commit(extent.slot)) return true;
    }
    if (!ReleaseOneIdle()) return false;
  }
}

bool SlabPool::ReleaseOneIdle() {
  for (auto& [slot_bytes, size_class] : classes_) {
    if (size_class->with_idle.empty()) continue;
    Chunk* chunk = *size_class->with_idle.rbegin();
    {
      const Change change(usage_, *size_class, chunk);
      chunk->ReleaseIdle();
    }
    DropIfUnused(*size_class, slot_bytes, chunk);
    return true;
  }
  return false;
}

void SlabPool::Count(const Extent& extent) {
  usage_.used_bytes += extent.stored_bytes();
  usage_.requested_bytes += extent.bytes;
}

void SlabPool::Uncount(const Extent& extent) {
  usage_.used_bytes -= extent.stored_bytes();
  usage_.requested_bytes -= extent.bytes;
}

void SlabPool::Give(const Extent& extent) {
  if (extent.empty()) return;
  SizeClass& size_class = *classes_.at(extent.stored_bytes());
  {
    const Change change(usage_, size_class, extent.chunk);
    extent.chunk->Free(extent.slot);
  }
  DropIfUnused(size_class, extent.stored_bytes(), extent.chunk);
}

void SlabPool::DropIfUnused(SizeClass& size_class, size_t slot_bytes, Chunk* chunk) {
  if (!chunk->empty() || (chunk->resident_bytes() > 0 && space_->keeps_idle())) return;
  usage_.idle_bytes -= chunk->idle_bytes();
  usage_.resident_bytes -= chunk->resident_bytes();
  size_class.with_ready.erase(chunk);
  size_class.with_fresh.erase(chunk);
  size_class.with_idle.erase(chunk);
  size_class.chunks.erase(chunk);
  if (size_class.chunks.empty()) classes_.erase(slot_bytes);
}

SlabPoolUsage SlabPool::Usage() const {
  absl::MutexLock lock(&mu_);
  return usage_;
}

absl::Status SlabPool::CheckInvariants() const {
  absl::MutexLock lock(&mu_);
  uint64_t used_bytes = 0, idle_bytes = 0, resident_bytes = 0;
  for (const auto& [slot_bytes, size_class] : classes_) {
    for (const auto& [chunk, owner] : size_class->chunks) {
      used_bytes += chunk->live_count() * slot_bytes;
      idle_bytes += chunk->idle_bytes();
      resident_bytes += chunk->resident_bytes();
    }
  }
  if (used_bytes != usage_.used_bytes) {
    return Disagree("used_bytes", usage_.used_bytes, used_bytes);
  }
  if (idle_bytes != usage_.idle_bytes) {
    return Disagree("idle_bytes", usage_.idle_bytes, idle_bytes);
  }
  if (resident_bytes != usage_.resident_bytes) {
    return Disagree("resident_bytes", usage_.resident_bytes, resident_bytes);
  }
  if (resident_bytes > capacity_bytes_) {
    return absl::InternalError(absl::StrCat("pool: ", resident_bytes,
                                            " bytes are resident, capacity is ", capacity_bytes_));
  }
  return absl::OkStatus();
}

}  // namespace fq
