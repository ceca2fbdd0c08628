// Nearest-entry search of the encoder: the same sums in the same order as kernels/codec/nearest.h,
// and so the same entry for the same values.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/codec/page_layout.h"
#include "kernels/cuda/group_codes.cuh"
#include "kernels/cuda/nearest_lists.h"

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

// The best entry so far: ties go to the first that was looked at, NaN scores to none.
struct Best {
  int code = 0;
  float score = -INFINITY;

  __device__ void Look(int other, float other_score) {
    if (other_score > score) {
      score = other_score;
      code = other;
    }
  }
};

template <int kBits>
__device__ inline int NearestOfAll(const uint32_t* tables, const float* x) {
  Best best;
#pragma unroll 1
  for (int code = 0; code < kTableEntries; ++code) {
    best.Look(code, EntryScore<kBits>(tables, code, x));
  }
  return best.code;
}

// The list of the cell of x, or null beyond the grid and without lists.
template <int kBits>
__device__ inline const uint4* ListOf(const std::byte* lists, const float* x) {
  constexpr ListGrid kGrid = GridOf(kBits);
  int cell = 0;
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kGrid.values; ++i) {
    const float level = x[i] * (1.0f / CellWidth(kBits)) + kGrid.levels / 2;
    const float last = static_cast<float>(kGrid.levels - 1);
    cell = cell * kGrid.levels + static_cast<int>(fminf(fmaxf(level, 0.0f), last));
    largest = fmaxf(largest, fabsf(x[i]));
  }
  if (lists == nullptr || largest >= kListLimit) return nullptr;
  return reinterpret_cast<const uint4*>(lists + cell * kGrid.bytes);
}

// The nearest entry out of the candidates of x's cell, or -1 where there is no list.
template <int kBits>
__device__ inline int NearestOfList(const uint32_t* tables, const std::byte* lists,
                                    const float* x) {
  constexpr int kWords = GridOf(kBits).bytes / 4;
  const uint4* list = ListOf<kBits>(lists, x);
  if (list == nullptr) return -1;
  uint32_t words[kWords];
#pragma unroll
  for (int i = 0; i < kWords / 4; ++i) {
    const uint4 four = list[i];
    words[4 * i] = four.x;
    words[4 * i + 1] = four.y;
    words[4 * i + 2] = four.z;
    words[4 * i + 3] = four.w;
  }
  const int count = static_cast<int>(words[kWords - 1] >> 24);
  if (count == 0) return -1;
  Best best;
#pragma unroll 1
  for (int word = 0; word < count; ++word) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // The last byte of a full list is its length, not an entry.
      const int at = word == kWords - 1 && i == 3 ? 2 : i;
      const int code = static_cast<int>(words[0] >> (8 * at) & 255u);
      best.Look(code, EntryScore<kBits>(tables, code, x));
    }
#pragma unroll
    for (int i = 0; i + 1 < kWords; ++i) words[i] = words[i + 1];
  }
  return best.code;
}

}  // namespace fq
