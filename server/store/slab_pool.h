// Memory of a tier. Slabs of one shape have one size, so each size has chunks of its own with free
// slots; nothing is ever searched or coalesced. Address space is generous, memory is not: what is
// resident never exceeds the capacity, and memory that one size leaves idle is handed to another
// size granule by granule, so no size can starve the others. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "kernels/memory/memory_space.h"
#include "server/store/chunk.h"

namespace fq {

// Memory of one part of a slab, 64-byte aligned. A plain value: whoever holds it frees it once.
struct Extent {
  static constexpr size_t kRoundingBytes = 64;

  std::byte* data = nullptr;  // [bytes]
  size_t bytes = 0;           // as asked for
  Chunk* chunk = nullptr;
  uint32_t slot = 0;

  bool empty() const { return bytes == 0; }
  size_t stored_bytes() const { return Round(bytes); }
  absl::Span<std::byte> span() const { return {data, bytes}; }
  static size_t Round(size_t bytes) { return Chunk::RoundUp(bytes, kRoundingBytes); }
};

// The two parts of a slab; either may be empty.
struct Extents {
  Extent primary;
  Extent refinement;
  uint64_t stored_bytes() const { return primary.stored_bytes() + refinement.stored_bytes(); }
};

struct SlabPoolUsage {
  uint64_t used_bytes = 0;       // extents, rounding included
  uint64_t requested_bytes = 0;  // without rounding
  uint64_t idle_bytes = 0;       // granules without a slab on them
  uint64_t resident_bytes = 0;   // granules that have memory, idle ones included; <= the capacity
};

class SlabPool {
 public:
  SlabPool(std::shared_ptr<MemorySpace> space, uint64_t capacity_bytes)
      : space_(std::move(space)), capacity_bytes_(capacity_bytes) {}
  SlabPool(const SlabPool&) = delete;
  SlabPool& operator=(const SlabPool&) = delete;

  // Both parts or nothing: there is no room. A part of 0 bytes is empty. Memory that lies idle for
  // other sizes is taken only when it makes room for both.
  std::optional<Extents> Allocate(size_t primary_bytes, size_t refinement_bytes)
      ABSL_LOCKS_EXCLUDED(mu_);

  // Slabs of these sizes will come: has addresses for the first, so that the space can have memory
  // ready for them (kernels/memory/ahead_space.h). Nothing is allocated.
  void Expect(size_t primary_bytes, size_t refinement_bytes) ABSL_LOCKS_EXCLUDED(mu_);

  // Takes the extents back. The memory of a chunk without live slots goes back to the space, unless
  // the space keeps what is idle.
  void Free(const Extents& extents) ABSL_LOCKS_EXCLUDED(mu_);

  uint64_t capacity_bytes() const { return capacity_bytes_; }
  bool on_host() const { return space_->on_host(); }
  SlabPoolUsage Usage() const ABSL_LOCKS_EXCLUDED(mu_);

  // Sums over all chunks must give the totals.
  absl::Status CheckInvariants() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct SizeClass {
    absl::flat_hash_map<Chunk*, std::unique_ptr<Chunk>> chunks;
    std::set<Chunk*> with_ready;  // lowest address first: the others drain
    std::set<Chunk*> with_fresh;
    std::set<Chunk*> with_idle;  // memory
  };
  class Change;

  // The four steps of Allocate and the two of Free; `missing_bytes` is added to.
  bool Take(size_t bytes, Extent& extent, size_t& missing_bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // At least what Take will find missing.
  size_t MissingBytes(size_t bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool CouldMakeRoom(size_t bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool MakeRoom(size_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool Commit(const Extent& extent) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Count(const Extent& extent) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Uncount(const Extent& extent) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Give(const Extent& extent) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  void ExpectSize(size_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Chunk* ChunkWithFreeSlot(SizeClass& size_class, size_t slot_bytes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool ReleaseOneIdle() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void DropIfUnused(SizeClass& size_class, size_t slot_bytes, Chunk* chunk)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::shared_ptr<MemorySpace> space_;  // used under mu_; outlives the chunks
  const uint64_t capacity_bytes_;
  mutable absl::Mutex mu_;
  SlabPoolUsage usage_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<size_t, std::unique_ptr<SizeClass>> classes_
      ABSL_GUARDED_BY(mu_);  // by slot_bytes
};

}  // namespace fq
