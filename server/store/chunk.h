// A mapping carved into slots of one size, and an exact account of which of its memory pages are
// resident. A slot is fresh (no memory behind it), idle (memory, no slab) or live.
// Not thread-safe: belongs to a SlabPool and is guarded by its mutex.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace fq {

class Chunk {
 public:
  static constexpr size_t kMemoryPageBytes = 4096;
  static constexpr size_t kTargetBytes = size_t{64} << 20;  // address space, not memory
  static constexpr size_t kMinSlots = 8;     // so that eviction and reuse do not unmap and map
  static constexpr size_t kMaxSlots = 4096;  // so that the lists of a chunk stay small

  // slot_bytes: a multiple of 64; at most `slot_limit` (>= 1) slots. Null when the system has no
  // address space left.
  static std::unique_ptr<Chunk> Map(size_t slot_bytes, size_t slot_limit);
  ~Chunk();
  Chunk(const Chunk&) = delete;
  Chunk& operator=(const Chunk&) = delete;

  bool has_idle() const { return !idle_.empty(); }
  bool has_fresh() const { return !fresh_.empty(); }
  bool empty() const { return live_count_ == 0; }
  size_t live_count() const { return live_count_; }
  size_t idle_count() const { return idle_.size(); }
  size_t slot_bytes() const { return slot_bytes_; }
  size_t resident_bytes() const { return resident_bytes_; }
  std::byte* data(uint32_t slot) const { return base_ + slot * slot_bytes_; }

  // REQUIRES has_idle(). The slot becomes live.
  uint32_t TakeIdle();

  // Memory that the next TakeFresh makes resident. REQUIRES has_fresh(), as TakeFresh.
  size_t NextFreshBytes() const;
  uint32_t TakeFresh();

  // Live -> idle.
  void Free(uint32_t slot);

  // Idle -> fresh: gives the memory of one slot back, except for pages that it shares with a
  // neighbour. REQUIRES has_idle().
  void ReleaseIdle();

 private:
  struct PageRange {  // of memory pages, end exclusive
    size_t begin, end;
  };

  Chunk(std::byte* base, size_t slot_bytes, size_t slot_count, size_t mapped_bytes);
  PageRange PagesOf(uint32_t slot) const;
  PageRange UnsharedPagesOf(uint32_t slot) const;  // pages that no resident slot uses
  void CountResident(uint32_t slot, int delta);

  std::byte* const base_;
  const size_t slot_bytes_;
  const size_t mapped_bytes_;
  size_t live_count_ = 0;
  size_t resident_bytes_ = 0;
  std::vector<uint32_t> idle_;
  std::vector<uint32_t> fresh_;      // lowest slot last: taken first, so resident slots are dense
  std::vector<uint8_t> page_users_;  // resident slots that begin or end on the page, at most 65
};

}  // namespace fq
