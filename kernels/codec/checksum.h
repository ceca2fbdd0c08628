// The 64-bit checksum of pages and slab headers (FORMAT.md section 3). Words may be summed in any
// order, so that SIMD lanes and GPU threads may stride. Pure functions, callable from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/base/host_device.h"

namespace fq {

// Contribution of u64 word `index` with value `word`; contributions are added mod 2^64.
FQ_HD constexpr uint64_t ChecksumWord(uint64_t index, uint64_t word) {
  const uint64_t keyed = word ^ (0x9E3779B97F4A7C15ull * (index + 1));
  return (keyed & 0xFFFFFFFFull) * (keyed >> 32) + (word << 32 | word >> 32);
}

// Turns the sum over all words into the checksum of `bytes` bytes.
FQ_HD constexpr uint64_t ChecksumFinish(uint64_t sum, uint64_t bytes) {
  uint64_t h = sum ^ (bytes * 0xC2B2AE3D27D4EB4Full);
  h ^= h >> 37;
  h *= 0x165667919E3779F9ull;
  return h ^ (h >> 32);
}

// Checksum of `bytes` bytes at `data`, a multiple of 8; no alignment needed.
inline uint64_t Checksum(const std::byte* data, size_t bytes) {
  uint64_t sum = 0;
  for (size_t i = 0; i < bytes / 8; ++i) {
    uint64_t word;
    memcpy(&word, data + 8 * i, sizeof(word));
    sum += ChecksumWord(i, word);
  }
  return ChecksumFinish(sum, bytes);
}

}  // namespace fq
