// Memory that is ready before it is asked for, over a space where Commit takes long.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/memory/memory_space.h"

namespace fq {

struct AheadOptions {
  uint64_t most_bytes = 0;   // all memory that the space has
  uint64_t ahead_bytes = 0;  // at most so much of it is ahead, in all reservations together
};

// A thread commits, in every reservation, what will be asked for next: four times what was used of
// it so far, but at least a 64th of most_bytes and one granule. What is ahead is nobody's: it gives
// way where memory is missing. Where a Commit of `space` fails that should have had memory, the
// thread ends, and that is all. It calls Commit of `space`, for one granule at a time, while any
// other call may be under way for other granules.
std::unique_ptr<MemorySpace> CreateAheadSpace(std::unique_ptr<MemorySpace> space,
                                              const AheadOptions& options);

}  // namespace fq
