// Memory of the host tier. Slabs of one shape have one size, so each size has chunks of its own
// with free lists; nothing is ever searched or coalesced. Address space is generous, memory is not:
// what is resident never exceeds the capacity, and memory that one size leaves idle is handed to
// another size page by page, so no size can starve the others. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
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
  static size_t Round(size_t bytes) {
    return (bytes + kRoundingBytes - 1) / kRoundingBytes * kRoundingBytes;
  }
};

struct SlabPoolUsage {
  uint64_t used_bytes = 0;       // extents, rounding included
  uint64_t requested_bytes = 0;  // without rounding
  uint64_t idle_bytes = 0;       // slots that have memory and no slab
  uint64_t resident_bytes = 0;   // memory pages behind live and idle slots; at most the capacity
};

class SlabPool {
 public:
  explicit SlabPool(uint64_t capacity_bytes) : capacity_bytes_(capacity_bytes) {}
  SlabPool(const SlabPool&) = delete;
  SlabPool& operator=(const SlabPool&) = delete;

  // Nothing when there is no room. Asked for 0 bytes it gives an empty extent.
  std::optional<Extent> Allocate(size_t bytes) ABSL_LOCKS_EXCLUDED(mu_);

  // Takes the extent back; the memory of a chunk without live slots goes back to the system.
  void Free(const Extent& extent) ABSL_LOCKS_EXCLUDED(mu_);

  uint64_t capacity_bytes() const { return capacity_bytes_; }
  // Memory without a slab, idle or not resident. Sizes that share no memory pages can have all.
  uint64_t AvailableBytes() const ABSL_LOCKS_EXCLUDED(mu_);

  SlabPoolUsage Usage() const ABSL_LOCKS_EXCLUDED(mu_);

  // Sums over all chunks must give the totals.
  absl::Status CheckInvariants() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct SizeClass {
    absl::flat_hash_map<Chunk*, std::unique_ptr<Chunk>> chunks;
    std::set<Chunk*> with_idle;  // lowest address first: the others drain and are unmapped
    std::set<Chunk*> with_fresh;
  };

  Chunk* ChunkWithFresh(SizeClass& size_class, size_t slot_bytes);
  std::optional<Extent> TakeIdle(SizeClass& size_class) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::optional<Extent> TakeFresh(SizeClass& size_class, size_t slot_bytes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool MakeResident(size_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool ReleaseOneIdle() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Unmap(SizeClass& size_class, Chunk* chunk) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const uint64_t capacity_bytes_;
  mutable absl::Mutex mu_;
  SlabPoolUsage usage_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<size_t, std::unique_ptr<SizeClass>> classes_
      ABSL_GUARDED_BY(mu_);  // by slot_bytes
};

}  // namespace fq
