// Memory that a tier of the store is made of: address space is reserved generously, memory is put
// behind it piece by piece. Implementations: host_space.h (mmap), pinned_space.h, vmm_space.h (a
// GPU's memory), and ahead_space.h over one of the latter two.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fq {

// Not thread-safe, unless it says so: a SlabPool calls it under its mutex. All ranges are multiples
// of granule_bytes.
class MemorySpace {
 public:
  virtual ~MemorySpace() = default;

  // Unit in which memory comes and goes; a power of two.
  virtual size_t granule_bytes() const = 0;

  // Address space without memory that may be counted on. Null when there is none left.
  virtual std::byte* Reserve(size_t bytes) = 0;

  // Takes a whole reservation back, with what memory is behind it.
  virtual void Unreserve(std::byte* begin, size_t bytes) = 0;

  // Puts memory behind the range, which has none. False when the space has none left: nothing is
  // changed.
  virtual bool Commit(std::byte* begin, size_t bytes) = 0;

  // Takes the memory of the range back. Nobody may be using it any more.
  virtual void Decommit(std::byte* begin, size_t bytes) = 0;

  // Whether the host may read and write it. What is not readable is copied by a DeviceQueue.
  virtual bool on_host() const = 0;

  // Whether memory that nobody uses should stay where it is until it is needed elsewhere: taking it
  // back is slow here, or serves nobody else.
  virtual bool keeps_idle() const { return true; }
};

}  // namespace fq
