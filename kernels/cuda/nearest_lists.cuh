// Kernel that makes the candidate lists of a codec set (nearest_lists.h).
#pragma once

#include "kernels/cuda/group_codes.cuh"
#include "kernels/cuda/nearest_lists.h"

namespace fq {

// The cell of x; which of two neighbours is to rounding.
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
struct CellBox {
  static constexpr ListGrid kGrid = GridOf(kBits);
  float low[kGrid.values], high[kGrid.values];
  int8_t open[kGrid.values];  // -1, 1: outer cells, below and above

  __device__ explicit CellBox(int cell) {
#pragma unroll
    for (int i = kGrid.values - 1; i >= 0; --i) {
      const int level = cell % kGrid.levels;
      cell /= kGrid.levels;
      const float edge = static_cast<float>(level - kGrid.levels / 2) * kGrid.width;
      open[i] = static_cast<int8_t>(level == 0 ? -1 : level + 1 == kGrid.levels ? 1 : 0);
      low[i] = open[i] < 0 ? -kListLimit : edge;
      high[i] = open[i] > 0 ? kListLimit : edge + kGrid.width;
    }
  }

  // Point `index` of the box; in outer cells denser towards the middle of the grid.
  __device__ void Point(int index, float (&x)[kGrid.values]) const {
#pragma unroll
    for (int i = 0; i < kGrid.values; ++i) {
      const float s = static_cast<float>(index % kGrid.points) / (kGrid.points - 1);
      index /= kGrid.points;
      const float size = high[i] - low[i];
      x[i] = open[i] < 0 ? high[i] - size * s * s : low[i] + size * (open[i] > 0 ? s * s : s);
    }
  }
};

// True when entry a is farther than b from every point of the box.
template <int kBits>
__device__ inline bool Farther(const float* a, const float* b, const CellBox<kBits>& box) {
  float difference = 0.0f;  // the largest |x - b|^2 - |x - a|^2 over the box
#pragma unroll
  for (int i = 0; i < ValuesPerByte(kBits); ++i) {
    const float slope = 2.0f * (a[i] - b[i]);
    difference += fmaxf(slope * box.low[i], slope * box.high[i]) + b[i] * b[i] - a[i] * a[i];
  }
  return difference < 0.0f;
}

// The least (kFarthest: the greatest) squared distance of an entry from points of the box.
template <int kBits, bool kFarthest>
__device__ inline float BoxDistance(const float* entry, const CellBox<kBits>& box) {
  float distance = 0.0f;
#pragma unroll
  for (int i = 0; i < ValuesPerByte(kBits); ++i) {
    const float below = box.low[i] - entry[i], above = entry[i] - box.high[i];
    const float side = kFarthest ? fmaxf(-below, -above) : fmaxf(fmaxf(below, above), 0.0f);
    distance = fmaf(side, side, distance);
  }
  return distance;
}

// Entries in rising order, and at how many points of a cell each is nearest.
struct Candidates {
  uint8_t code[kTableEntries];
  uint16_t points[kTableEntries];
  int count = 0;

  // The one that the fewest points are nearest to.
  __device__ int Least() const {
    int least = 0;
    for (int i = 1; i < count; ++i) least = points[i] < points[least] ? i : least;
    return least;
  }
  __device__ void Remove(int which) {
    for (int i = which; i + 1 < count; ++i) {
      code[i] = code[i + 1];
      points[i] = points[i + 1];
    }
    --count;
  }
};

// The entries that can be nearest anywhere in the box.
template <int kBits>
__device__ inline void FindCandidates(const float* values, const CellBox<kBits>& box,
                                      Candidates* found) {
  constexpr int kValues = ValuesPerByte(kBits);
  float best = INFINITY;
  for (int code = 0; code < kTableEntries; ++code) {
    best = fminf(best, BoxDistance<kBits, true>(values + code * kValues, box));
  }
  for (int code = 0; code < kTableEntries; ++code) {
    if (BoxDistance<kBits, false>(values + code * kValues, box) > best) continue;
    found->code[found->count] = static_cast<uint8_t>(code);
    found->points[found->count++] = 0;
  }
  for (int i = 0; i < found->count;) {
    bool farther = false;
    for (int k = 0; k < found->count && !farther; ++k) {
      farther =
          Farther<kBits>(values + found->code[i] * kValues, values + found->code[k] * kValues, box);
    }
    if (farther) {
      found->Remove(i);
    } else {
      ++i;
    }
  }
}

template <int kBits>
__device__ inline void CountPoints(const float* values, const CellBox<kBits>& box,
                                   Candidates* candidates) {
  constexpr int kValues = ValuesPerByte(kBits);
  for (int point = 0; point < GridOf(kBits).Points(); ++point) {
    float x[kValues], best = INFINITY;
    box.Point(point, x);
    int nearest = 0;
    for (int i = 0; i < candidates->count; ++i) {
      const float* entry = values + candidates->code[i] * kValues;
      float distance = 0.0f;
      for (int v = 0; v < kValues; ++v) {
        distance = fmaf(x[v] - entry[v], x[v] - entry[v], distance);
      }
      if (distance < best) {
        best = distance;
        nearest = i;
      }
    }
    ++candidates->points[nearest];
  }
}

// The list of one cell, by one thread.
template <int kBits>
__device__ inline void MakeList(const float* values, int cell, std::byte* list) {
  constexpr ListGrid kGrid = GridOf(kBits);
  const CellBox<kBits> box(cell);
  Candidates candidates;
  FindCandidates<kBits>(values, box, &candidates);
  CountPoints<kBits>(values, box, &candidates);
  int left_out = 0;
  for (int least = candidates.Least();
       candidates.points[least] == 0 || candidates.count > kGrid.bytes;
       least = candidates.Least()) {
    left_out += candidates.points[least];
    candidates.Remove(least);
  }
  for (int i = 0; i < kGrid.bytes; ++i) {
    list[i] =
        static_cast<std::byte>(candidates.code[i < candidates.count ? i : candidates.count - 1]);
  }
  if (kLeftOut * left_out > kGrid.Points()) *reinterpret_cast<uint32_t*>(list) = kNoList;
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
