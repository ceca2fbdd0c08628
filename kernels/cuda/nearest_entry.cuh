// Nearest-entry search of the encoder: the same sums in the same order as kernels/codec/nearest.h,
// and so the same entry for the same values.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/codec/page_layout.h"
#include "kernels/cuda/group_codes.cuh"

namespace fq {

// Score of entry `code`: the higher, the nearer.
template <int kBits>
__device__ inline float EntryScore(const uint32_t* tables, int code, const float* x) {
  constexpr int kValues = ValuesPerByte(kBits);
  float values[kValues];
  WidenEntry<kBits>(tables, code, values);
  float norm = 0.0f;
#pragma unroll
  for (int i = 0; i < kValues; ++i) norm = fmaf(values[i], values[i], norm);
  float score = -0.5f * norm;
#pragma unroll
  for (int i = 0; i < kValues; ++i) score = fmaf(x[i], values[i], score);
  return score;
}

// Looks at every entry; ties go to the lowest, NaN gives entry 0.
template <int kBits>
__device__ inline int NearestOfAll(const uint32_t* tables, const float* x) {
  int best = 0;
  float best_score = -INFINITY;
#pragma unroll 2
  for (int code = 0; code < kTableEntries; ++code) {
    const float score = EntryScore<kBits>(tables, code, x);
    if (score > best_score) {
      best_score = score;
      best = code;
    }
  }
  return best;
}

}  // namespace fq
