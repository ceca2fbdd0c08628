// Kernel that makes the candidate lists of a codec set (nearest_lists.h).
#pragma once

#include "kernels/cuda/group_codes.cuh"
#include "kernels/cuda/nearest_lists.h"

namespace fq {

// The cell of x, to rounding, which Farther leaves room for.
template <int kBits>
__device__ inline uint32_t CellOf(const float* x) {
  constexpr ListGrid kGrid = GridOf(kBits);
  constexpr float kLast = static_cast<float>(kGrid.levels - 1), kOne = 1.0f / (kGrid.width * kLast);
  constexpr float kInteger = 8388608.0f;  // 2^23: what is added to it is rounded to an integer
  uint32_t cell = 0;
#pragma unroll
  for (int i = 0; i < kGrid.values; ++i) {
    const float part = Saturate(fmaf(x[i], kOne, 0.5f));
    cell = cell * kGrid.levels + (FloatBits(fmaf(part, kLast, kInteger)) - FloatBits(kInteger));
  }
  return cell;
}

// The box of a cell. Cells count along the last value first.
template <int kBits>
__device__ inline void CellBox(int cell, float (&low)[ValuesPerByte(kBits)],
                               float (&high)[ValuesPerByte(kBits)]) {
  constexpr ListGrid kGrid = GridOf(kBits);
#pragma unroll
  for (int i = kGrid.values - 1; i >= 0; --i) {
    const int level = cell % kGrid.levels;
    cell /= kGrid.levels;
    const float edge = static_cast<float>(level - kGrid.levels / 2) * kGrid.width;
    low[i] = level == 0 ? -kListLimit : edge;
    high[i] = level + 1 == kGrid.levels ? kListLimit : edge + kGrid.width;
  }
}

// True when entry a is farther than b from every point of the box, by more than rounding.
template <int kValues>
__device__ inline bool Farther(const float* a, const float* b, const float (&low)[kValues],
                               const float (&high)[kValues]) {
  float difference = 0.0f, size = 0.0f;  // the largest |x - b|^2 - |x - a|^2 over the box
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    const float slope = 2.0f * (a[i] - b[i]), squares = b[i] * b[i] + a[i] * a[i];
    difference += fmaxf(slope * low[i], slope * high[i]) + b[i] * b[i] - a[i] * a[i];
    size += fabsf(slope) * kListLimit + squares;
  }
  return difference < -1e-6f * size;
}

// Whether entry `code` can be nearest anywhere in the box.
template <int kValues>
__device__ inline bool IsCandidate(const float* values, int code, const float (&low)[kValues],
                                   const float (&high)[kValues]) {
  for (int other = 0; other < kTableEntries; ++other) {
    if (Farther<kValues>(values + code * kValues, values + other * kValues, low, high)) {
      return false;
    }
  }
  return true;
}

// The list of one cell, by one thread.
template <int kBits>
__device__ inline void MakeList(const float* values, int cell, std::byte* list) {
  constexpr ListGrid kGrid = GridOf(kBits);
  constexpr int kValues = ValuesPerByte(kBits);
  float low[kValues], high[kValues];
  CellBox<kBits>(cell, low, high);
  int count = 0;
  for (int code = 0; code < kTableEntries && count <= kGrid.bytes; ++code) {
    if (!IsCandidate<kValues>(values, code, low, high)) continue;
    for (int i = count; i < kGrid.bytes; ++i) list[i] = static_cast<std::byte>(code);
    ++count;
  }
  if (count > kGrid.bytes) *reinterpret_cast<uint32_t*>(list) = kNoList;
}

// Block b makes a part of the lists of one table; `values` is float [1024] of shared memory.
template <int kBits>
__device__ inline void MakeLists(const uint32_t* tables, float* values, int first_cell, int cells,
                                 std::byte* lists) {
  constexpr ListGrid kGrid = GridOf(kBits);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kTableEntries) {
    WidenEntry<kBits>(tables, thread, values + thread * ValuesPerByte(kBits));
  }
  __syncthreads();
  if (thread < cells && first_cell + thread < kGrid.Cells()) {
    MakeList<kBits>(values, first_cell + thread, lists + (first_cell + thread) * kGrid.bytes);
  }
}

}  // namespace fq
