#include "server/store/chunk.h"

#include <sys/mman.h>

#include <algorithm>

#include "absl/base/config.h"
#ifdef ABSL_HAVE_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#endif

namespace fq {
namespace {

size_t RoundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// Under AddressSanitizer a read of a slab that is not pinned any more is an error, not old bytes.
void Forbid([[maybe_unused]] std::byte* data, [[maybe_unused]] size_t bytes) {
#ifdef ABSL_HAVE_ADDRESS_SANITIZER
  ASAN_POISON_MEMORY_REGION(data, bytes);
#endif
}

void Allow([[maybe_unused]] std::byte* data, [[maybe_unused]] size_t bytes) {
#ifdef ABSL_HAVE_ADDRESS_SANITIZER
  ASAN_UNPOISON_MEMORY_REGION(data, bytes);
#endif
}

}  // namespace

std::unique_ptr<Chunk> Chunk::Map(size_t slot_bytes, size_t slot_limit) {
  const size_t slots =
      std::min(std::clamp(kTargetBytes / slot_bytes, kMinSlots, kMaxSlots), slot_limit);
  const size_t mapped = RoundUp(slots * slot_bytes, kMemoryPageBytes);
  void* base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  // A huge page would make memory resident behind slots that are fresh, past the capacity.
  madvise(base, mapped, MADV_NOHUGEPAGE);
  return std::unique_ptr<Chunk>(
      new Chunk(static_cast<std::byte*>(base), slot_bytes, slots, mapped));
}

Chunk::Chunk(std::byte* base, size_t slot_bytes, size_t slot_count, size_t mapped_bytes)
    : base_(base),
      slot_bytes_(slot_bytes),
      mapped_bytes_(mapped_bytes),
      fresh_(slot_count),
      page_users_(mapped_bytes / kMemoryPageBytes, 0) {
  for (size_t i = 0; i < slot_count; ++i) fresh_[i] = static_cast<uint32_t>(slot_count - 1 - i);
  Forbid(base_, mapped_bytes_);
}

Chunk::~Chunk() {
  Allow(base_, mapped_bytes_);
  munmap(base_, mapped_bytes_);
}

Chunk::PageRange Chunk::PagesOf(uint32_t slot) const {
  const size_t begin_bytes = slot * slot_bytes_;
  return {begin_bytes / kMemoryPageBytes,
          RoundUp(begin_bytes + slot_bytes_, kMemoryPageBytes) / kMemoryPageBytes};
}

// Only the first and the last page of a slot can be shared, so only those are looked at.
Chunk::PageRange Chunk::UnsharedPagesOf(uint32_t slot) const {
  PageRange pages = PagesOf(slot);
  if (page_users_[pages.begin] > 0) ++pages.begin;
  if (pages.end > pages.begin && page_users_[pages.end - 1] > 0) --pages.end;
  return pages;
}

void Chunk::CountResident(uint32_t slot, int delta) {
  const PageRange pages = PagesOf(slot);
  page_users_[pages.begin] = static_cast<uint8_t>(page_users_[pages.begin] + delta);
  if (pages.end - 1 == pages.begin) return;
  page_users_[pages.end - 1] = static_cast<uint8_t>(page_users_[pages.end - 1] + delta);
}

uint32_t Chunk::TakeIdle() {
  const uint32_t slot = idle_.back();
  idle_.pop_back();
  ++live_count_;
  Allow(data(slot), slot_bytes_);
  return slot;
}

size_t Chunk::NextFreshBytes() const {
  const PageRange pages = UnsharedPagesOf(fresh_.back());
  return (pages.end - pages.begin) * kMemoryPageBytes;
}

uint32_t Chunk::TakeFresh() {
  resident_bytes_ += NextFreshBytes();
  const uint32_t slot = fresh_.back();
  fresh_.pop_back();
  CountResident(slot, +1);
  ++live_count_;
  Allow(data(slot), slot_bytes_);
  return slot;
}

void Chunk::Free(uint32_t slot) {
  idle_.push_back(slot);
  --live_count_;
  Forbid(data(slot), slot_bytes_);
}

void Chunk::ReleaseIdle() {
  const uint32_t slot = idle_.back();
  idle_.pop_back();
  fresh_.push_back(slot);
  CountResident(slot, -1);
  const PageRange pages = UnsharedPagesOf(slot);
  const size_t bytes = (pages.end - pages.begin) * kMemoryPageBytes;
  if (bytes > 0) madvise(base_ + pages.begin * kMemoryPageBytes, bytes, MADV_DONTNEED);
  resident_bytes_ -= bytes;
}

}  // namespace fq
