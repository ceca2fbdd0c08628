// Sums over the 8-byte words of a stretch of memory, by a warp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/warp.cuh"

namespace fq {

// The sum of term(i, word i) over `words` words from `data` on, mod 2^64; `words` is even, `data` a
// multiple of 16. Every lane of a whole warp calls it and gets the sum; each has kLoadsAhead loads
// of two words under way.
template <int kLoadsAhead, typename Term>
__device__ inline uint64_t WarpSum(const std::byte* data, int words, int lane, const Term& term) {
  const auto* memory = reinterpret_cast<const ulonglong2*>(data);
  const int count = words / 2;
  uint64_t sum = 0;
#pragma unroll 1
  for (int first = lane; first < count; first += 32 * kLoadsAhead) {
    ulonglong2 pairs[kLoadsAhead];
#pragma unroll
    for (int i = 0; i < kLoadsAhead; ++i) {
      if (first + 32 * i < count) pairs[i] = memory[first + 32 * i];
    }
#pragma unroll
    for (int i = 0; i < kLoadsAhead; ++i) {
      const int at = first + 32 * i;
      if (at >= count) continue;
      sum += term(2 * at, pairs[i].x) + term(2 * at + 1, pairs[i].y);
    }
  }
  for (int mask = 16; mask > 0; mask >>= 1) sum += FromLaneXor(sum, mask);
  return sum;
}

}  // namespace fq
