#include "server/store/chunk.h"

#include <algorithm>

#include "absl/base/config.h"
#ifdef ABSL_HAVE_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#endif

namespace fq {
namespace {

// Under AddressSanitizer a read of a slab that is not pinned any more is an error, not old bytes.
void Forbid([[maybe_unused]] const MemorySpace& space, [[maybe_unused]] std::byte* data,
            [[maybe_unused]] size_t bytes) {
#ifdef ABSL_HAVE_ADDRESS_SANITIZER
  if (space.on_host()) ASAN_POISON_MEMORY_REGION(data, bytes);
#endif
}

void Allow([[maybe_unused]] const MemorySpace& space, [[maybe_unused]] std::byte* data,
           [[maybe_unused]] size_t bytes) {
#ifdef ABSL_HAVE_ADDRESS_SANITIZER
  if (space.on_host()) ASAN_UNPOISON_MEMORY_REGION(data, bytes);
#endif
}

}  // namespace

std::unique_ptr<Chunk> Chunk::Reserve(MemorySpace* space, size_t slot_bytes, size_t slot_limit) {
  const size_t granule_bytes = space->granule_bytes();
  const size_t target_bytes = std::max(kMinTargetBytes, kTargetGranules * granule_bytes);
  const size_t slots =
      std::min(std::clamp(target_bytes / slot_bytes, kMinSlots, kMaxSlots), slot_limit);
  const size_t reserved_bytes = RoundUp(slots * slot_bytes, granule_bytes);
  std::byte* base = space->Reserve(reserved_bytes);
  if (base == nullptr) return nullptr;
  return std::unique_ptr<Chunk>(new Chunk(space, base, slot_bytes, slots, reserved_bytes));
}

Chunk::Chunk(MemorySpace* space, std::byte* base, size_t slot_bytes, size_t slot_count,
             size_t reserved_bytes)
    : space_(space),
      base_(base),
      slot_bytes_(slot_bytes),
      slot_count_(slot_count),
      granule_bytes_(space->granule_bytes()),
      reserved_bytes_(reserved_bytes),
      missing_(slot_count),
      users_(reserved_bytes / granule_bytes_, 0),
      resident_(reserved_bytes / granule_bytes_, false) {
  for (uint32_t slot = 0; slot < slot_count; ++slot) {
    missing_[slot] = static_cast<uint32_t>(GranulesOf(slot).size());
    fresh_.insert(fresh_.end(), slot);
  }
  Forbid(*space_, base_, reserved_bytes_);
}

Chunk::~Chunk() {
  Allow(*space_, base_, reserved_bytes_);
  space_->Unreserve(base_, reserved_bytes_);
}

Chunk::Range Chunk::GranulesOf(uint32_t slot) const {
  const size_t begin_bytes = slot * slot_bytes_;
  return {begin_bytes / granule_bytes_, (begin_bytes + slot_bytes_ - 1) / granule_bytes_ + 1};
}

// Only the first and the last granule of a slot can be another's too, so only those are looked at.
Chunk::Range Chunk::UnusedGranulesOf(uint32_t slot) const {
  Range granules = GranulesOf(slot);
  if (users_[granules.begin] > 0) ++granules.begin;
  if (granules.end > granules.begin && users_[granules.end - 1] > 0) --granules.end;
  return granules;
}

size_t Chunk::CountResident(uint32_t slot, Range granules) const {
  if (missing_[slot] == 0) return granules.size();
  if (missing_[slot] == GranulesOf(slot).size()) return 0;
  size_t count = 0;
  for (size_t i = granules.begin; i < granules.end; ++i) count += resident_[i] ? 1 : 0;
  return count;
}

void Chunk::CountUser(uint32_t slot, int delta) {
  const Range granules = GranulesOf(slot);
  users_[granules.begin] += static_cast<uint32_t>(delta);
  if (granules.size() > 1) users_[granules.end - 1] += static_cast<uint32_t>(delta);
}

size_t Chunk::NextMissingBytes() const {
  if (has_ready()) return 0;
  const uint32_t slot = *fresh_.begin();
  const Range granules = UnusedGranulesOf(slot);
  return (granules.size() - CountResident(slot, granules)) * granule_bytes_;
}

Chunk::Taken Chunk::Take() {
  absl::btree_set<uint32_t>& slots = has_ready() ? ready_ : fresh_;
  const uint32_t slot = *slots.begin();
  slots.erase(slots.begin());
  const Range granules = UnusedGranulesOf(slot);
  const size_t resident = CountResident(slot, granules);
  idle_granules_ -= resident;
  CountUser(slot, +1);
  ++live_count_;
  Allow(*space_, data(slot), slot_bytes_);
  return {slot, (granules.size() - resident) * granule_bytes_};
}

bool Chunk::Commit(uint32_t slot) {
  Range granules = GranulesOf(slot);
  while (missing_[slot] > 0) {
    while (resident_[granules.begin]) ++granules.begin;
    Range run{granules.begin, granules.begin};
    while (run.end < granules.end && !resident_[run.end]) ++run.end;
    if (!space_->Commit(base_ + run.begin * granule_bytes_, run.size() * granule_bytes_)) {
      return false;
    }
    for (size_t i = run.begin; i < run.end; ++i) SetResident(i, true);
    granules.begin = run.end;
  }
  return true;
}

// Moves the free slots that the granule belongs to between fresh and ready.
void Chunk::SetResident(size_t granule, bool resident) {
  resident_[granule] = resident;
  resident ? ++resident_granules_ : --resident_granules_;
  const size_t first = granule * granule_bytes_ / slot_bytes_;
  const size_t last = std::min(((granule + 1) * granule_bytes_ - 1) / slot_bytes_, slot_count_ - 1);
  for (size_t i = first; i <= last; ++i) {
    const auto slot = static_cast<uint32_t>(i);
    if (resident && --missing_[slot] == 0 && fresh_.erase(slot) > 0) ready_.insert(slot);
    if (!resident && missing_[slot]++ == 0 && ready_.erase(slot) > 0) fresh_.insert(slot);
  }
}

void Chunk::Free(uint32_t slot) {
  CountUser(slot, -1);
  const Range granules = UnusedGranulesOf(slot);
  idle_granules_ += CountResident(slot, granules);
  (missing_[slot] == 0 ? ready_ : fresh_).insert(slot);
  --live_count_;
  Forbid(*space_, data(slot), slot_bytes_);
}

// From the highest slot down: the lowest are taken first.
void Chunk::ReleaseIdle() {
  for (const absl::btree_set<uint32_t>* slots : {&ready_, &fresh_}) {
    for (auto slot = slots->rbegin(); slot != slots->rend(); ++slot) {
      if (ReleaseIdleOf(*slot)) return;  // which has changed the sets
    }
  }
}

bool Chunk::ReleaseIdleOf(uint32_t slot) {
  const Range granules = UnusedGranulesOf(slot);
  bool released = false;
  for (size_t begin = granules.begin; begin < granules.end;) {
    size_t end = begin;
    while (end < granules.end && resident_[end]) ++end;
    if (end > begin) {
      space_->Decommit(base_ + begin * granule_bytes_, (end - begin) * granule_bytes_);
      idle_granules_ -= end - begin;
      released = true;
    }
    for (; begin < end; ++begin) SetResident(begin, false);
    ++begin;
  }
  return released;
}

}  // namespace fq
