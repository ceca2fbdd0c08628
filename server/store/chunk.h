// Address space carved into slots of one size, and an exact account of the memory behind it,
// granule by granule. A slot is live (a slab's), or free: ready when all its memory is there, fresh
// when some is not. Memory that no live slot uses is idle. Not thread-safe: belongs to a SlabPool
// and is guarded by its mutex.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/btree_set.h"
#include "kernels/memory/memory_space.h"

namespace fq {

class Chunk {
 public:
  static constexpr size_t kMinTargetBytes = size_t{64} << 20;  // address space, not memory
  static constexpr size_t kTargetGranules = 512;  // what one chunk ends is not ready in the next
  static constexpr size_t kMinSlots = 8;          // so that eviction and reuse do not unmap and map
  static constexpr size_t kMaxSlots = 4096;       // so that the lists of a chunk stay small

  static size_t RoundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

  struct Taken {
    uint32_t slot = 0;
    size_t missing_bytes = 0;  // memory to commit for it, without what another taken slot lacks too
  };

  // slot_bytes: a multiple of 64; at most `slot_limit` (>= 1) slots. Null when the space has no
  // addresses left. The space outlives the chunk.
  static std::unique_ptr<Chunk> Reserve(MemorySpace* space, size_t slot_bytes, size_t slot_limit);
  ~Chunk();
  Chunk(const Chunk&) = delete;
  Chunk& operator=(const Chunk&) = delete;

  bool has_ready() const { return !ready_.empty(); }
  bool has_fresh() const { return !fresh_.empty(); }
  bool empty() const { return live_count_ == 0; }
  size_t live_count() const { return live_count_; }
  size_t resident_bytes() const { return resident_granules_ * granule_bytes_; }
  size_t idle_bytes() const { return idle_granules_ * granule_bytes_; }  // part of the resident
  std::byte* data(uint32_t slot) const { return base_ + slot * slot_bytes_; }

  // What Take will find missing. REQUIRES has_ready() or has_fresh().
  size_t NextMissingBytes() const;

  // A free slot becomes live; a ready one if there is any. Its memory is there after Commit only.
  // REQUIRES has_ready() or has_fresh().
  Taken Take();

  // Puts memory behind a live slot where it is missing. False when the space has none left; what
  // has come stays.
  bool Commit(uint32_t slot);

  // Live -> free. Its memory stays.
  void Free(uint32_t slot);

  // Gives the idle memory of one free slot back. REQUIRES idle_bytes() > 0.
  void ReleaseIdle();

 private:
  struct Range {  // of granules, end exclusive
    size_t begin, end;
    size_t size() const { return end - begin; }
  };

  Chunk(MemorySpace* space, std::byte* base, size_t slot_bytes, size_t slot_count,
        size_t reserved_bytes);
  Range GranulesOf(uint32_t slot) const;
  Range UnusedGranulesOf(uint32_t slot) const;  // those that no live slot uses; slot is not live
  size_t CountResident(uint32_t slot, Range granules) const;  // granules: some of the slot's
  void CountUser(uint32_t slot, int delta);
  void SetResident(size_t granule, bool resident);
  bool ReleaseIdleOf(uint32_t slot);

  MemorySpace* const space_;
  std::byte* const base_;
  const size_t slot_bytes_;
  const size_t slot_count_;
  const size_t granule_bytes_;
  const size_t reserved_bytes_;
  size_t live_count_ = 0;
  size_t resident_granules_ = 0;
  size_t idle_granules_ = 0;
  absl::btree_set<uint32_t> ready_, fresh_;  // lowest slot first, so that live slots are dense
  std::vector<uint32_t> missing_;            // [slot]: granules that are not resident
  std::vector<uint32_t> users_;              // [granule]: live slots that begin or end on it
  std::vector<bool> resident_;               // [granule]
};

}  // namespace fq
