// Codes of a channel group as one warp holds them: lane 4g + t has the 16 values with sequence
// numbers 16 lane .. 16 lane + 15 (FORMAT.md section 2), which lie in bytes of its own.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/codec/chain_word.h"
#include "kernels/codec/page_layout.h"
#include "kernels/codec/quantise.h"
#include "kernels/cuda/coder_layout.h"
#include "kernels/cuda/warp.cuh"

namespace fq {

inline constexpr int kLaneValues = 16;  // of a group: 4 tile + 2 r + e

// The two FP16 of a word.
__device__ inline void WidenWord(uint32_t word, float* values) {
  const float2 pair = WidenHalves(word);
  values[0] = pair.x;
  values[1] = pair.y;
}

// The four FP16 of a chain word.
__device__ inline void WidenChain(uint32_t word, float* values) {
  WidenWord(word, values);
  WidenWord(ChainPair(word, 1), values + 2);
}

// The table entry of one byte of class `kBits`.
template <int kBits>
__device__ inline void WidenEntry(const uint32_t* tables, int code, float* values) {
  const uint32_t* words = tables + TableWord(kBits) + code * WordsPerEntry(kBits);
  if constexpr (kBits == 4) {
    WidenWord(words[0], values);
  } else {
#pragma unroll
    for (int i = 0; i < WordsPerEntry(kBits); ++i) WidenChain(words[i], values + 4 * i);
  }
}

// -|entry|^2 / 2, summed as on the CPU.
template <int kValues>
__device__ inline float StartOf(const float (&values)[kValues]) {
  float norm = 0.0f;
#pragma unroll
  for (int i = 0; i < kValues; ++i) norm = fmaf(values[i], values[i], norm);
  return -0.5f * norm;
}

template <int kBits>
__device__ inline void ReadTableGroup(const uint8_t* codes, const uint32_t* tables,
                                      float (&values)[kLaneValues]) {
#pragma unroll
  for (int b = 0; b < 2 * kBits; ++b) {
    WidenEntry<kBits>(tables, codes[b], values + b * ValuesPerByte(kBits));
  }
}

// Values of a group of class `bits`; `codes` is its start in the page, `tables` those of its part.
__device__ inline void ReadGroup(int bits, const std::byte* codes, const uint32_t* tables, int lane,
                                 float (&values)[kLaneValues]) {
  alignas(16) uint8_t bytes[kLaneValues];
  const std::byte* own = codes + 2 * bits * lane;
  if (bits == 8) {
    *reinterpret_cast<uint4*>(bytes) = *reinterpret_cast<const uint4*>(own);
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) values[i] = Class8Value(bytes[i]);
  } else if (bits == 4) {
    *reinterpret_cast<uint2*>(bytes) = *reinterpret_cast<const uint2*>(own);
    ReadTableGroup<4>(bytes, tables, values);
  } else if (bits == 2) {
    *reinterpret_cast<uint32_t*>(bytes) = *reinterpret_cast<const uint32_t*>(own);
    ReadTableGroup<2>(bytes, tables, values);
  } else if (bits == 1) {
    *reinterpret_cast<uint16_t*>(bytes) = *reinterpret_cast<const uint16_t*>(own);
    ReadTableGroup<1>(bytes, tables, values);
  } else {
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) values[i] = 0.0f;
  }
}

// Component within the group of value `i` of a lane.
__device__ inline int ComponentOf(Side side, int lane, int i) {
  return side == Side::kKey ? 2 * (lane & 3) + (i & 1) : lane >> 2;
}

// Token within the page of value `i` of a lane.
__device__ inline int TokenOf(Side side, int lane, int i) {
  const int tile = i >> 2, r = i >> 1 & 1, e = i & 1;
  return 16 * tile + 8 * r + (side == Side::kKey ? lane >> 2 : 2 * (lane & 3) + e);
}

}  // namespace fq
