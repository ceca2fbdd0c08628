// Nearest-entry search of the encoder for the classes 4 and 2: the distance to every entry of a
// candidate list. Class 4 counts in FP32, whose last byte gives way to the code; class 2 in FP16.
// Entries whose distances differ by less (2^-15 and 2^-9 of them) may be taken for one another.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/group_codes.cuh"
#include "kernels/cuda/nearest_lists.cuh"
#include "kernels/cuda/nearest_tables.h"

namespace fq {

// Values of a group as a lane searches for their entries.
struct SearchValues {
  float value[kLaneValues];
  uint32_t half[kLaneValues / 2];  // pairs of FP16
  bool far;                        // one is beyond the limit of the lists
};

__device__ inline SearchValues SearchValuesOf(const float (&u)[kLaneValues]) {
  SearchValues x;
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kLaneValues / 2; ++i) {
    x.value[2 * i] = u[2 * i];
    x.value[2 * i + 1] = u[2 * i + 1];
    x.half[i] = PackHalves(u[2 * i], u[2 * i + 1]);
    largest = LargerHalves(largest, x.half[i]);
  }
  const float2 both = WidenHalves(largest);
  x.far = !(fmaxf(both.x, both.y) < kListLimit);
  return x;
}

template <int kBits>
__device__ inline void EntryOf(const SearchTables& tables, int code,
                               float (&value)[ValuesPerByte(kBits)]) {
  if constexpr (kBits == 4) {
    value[0] = tables.class4[code][0];
    value[1] = tables.class4[code][1];
  } else if constexpr (kBits == 2) {
    WidenChain(tables.class2[code], value);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) WidenWord(tables.class1[code][i], value + 2 * i);
  }
}

// FP32 as integers of the same order.
__device__ inline int32_t Ordered(float x) {
  const auto bits = static_cast<int32_t>(FloatBits(x));
  return bits ^ (bits >> 31 & 0x7FFFFFFF);
}

// Looks at all entries for the values of lane `source`, by the whole warp: the same sums in the
// same order as kernels/codec/nearest.h, and so the same entry.
template <int kBits>
__device__ inline int NearestOfAll(const SearchTables& tables, const float* x, int lane,
                                   int source) {
  constexpr int kValues = ValuesPerByte(kBits);
  float own[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) own[i] = FromLane(x[i], source);
  float best_score = -INFINITY;
  int best = lane;
#pragma unroll 1
  for (int code = lane; code < kTableEntries; code += 32) {
    float value[kValues];
    EntryOf<kBits>(tables, code, value);
    float score = StartOf(value);
#pragma unroll
    for (int i = 0; i < kValues; ++i) score = fmaf(own[i], value[i], score);
    if (score > best_score) {
      best_score = score;
      best = code;
    }
  }
  const int32_t score = Ordered(best_score), highest = HighestOfWarp(score);
  return -HighestOfWarp(score == highest ? -best : -kTableEntries);
}

// `code`, or what a look at all entries finds where `is_lost`; by the whole warp.
template <int kBits>
__device__ inline int FoundOrNearestOfAll(const SearchTables& tables, bool is_lost, int code,
                                          const float* x, int lane) {
  for (uint32_t lost = Ballot(is_lost); lost != 0; lost &= lost - 1) {
    const int source = LowestBit(lost);
    const int other = NearestOfAll<kBits>(tables, x, lane, source);
    if (lane == source) code = other;
  }
  return code;
}

// The list of one byte: two entries a value.
template <int kBits>
struct CandidateList {
  static constexpr int kWords = GridOf(kBits).bytes / 4;
  uint32_t words[kWords];
};

// The list of the cell of x; kNoList without lists.
template <int kBits>
__device__ inline CandidateList<kBits> ListOf(const std::byte* lists, const float* x) {
  CandidateList<kBits> list = {};
  list.words[0] = kNoList;
  if (lists == nullptr) return list;
  const std::byte* from = lists + CellOf<kBits>(x) * GridOf(kBits).bytes;
  if constexpr (kBits == 4) {
    list.words[0] = LoadConstant<uint32_t>(from);
  } else {
    const uint2 two = LoadConstant<uint2>(from);
    list.words[0] = two.x;
    list.words[1] = two.y;
  }
  return list;
}

// Distance to entry `i` of the four of a word as an integer whose lowest byte is the code; `table`
// is the shared address of the class, x the byte's first value or pair.
template <int kBits>
__device__ inline uint32_t DistanceTo(uint32_t table, uint32_t word, int i, const float* value,
                                      const uint32_t* half) {
  if constexpr (kBits == 4) {
    const float2 entry = LoadSharedPair(DotBytes(word, 8u << (8 * i), table));
    const float a = value[0] - entry.x, b = value[1] - entry.y;
    return PickBytes(FloatBits(fmaf(a, a, b * b)), word, 0x3214u + static_cast<uint32_t>(i));
  } else {
    const uint32_t chain = LoadSharedWord(DotBytes(word, 4u << (8 * i), table));
    const uint32_t entry[2] = {chain, ChainPair(chain, 1)};
    return PickBytes(HalfDistance<2>(half, entry), word,
                     0x1044u + 0x11u * static_cast<uint32_t>(i));
  }
}

// Code of the nearest of the candidates of byte `b` of the lane.
template <int kBits>
__device__ inline uint32_t NearestOfList(const SearchTables& tables,
                                         const CandidateList<kBits>& list, const SearchValues& x,
                                         int b) {
  constexpr int kValues = ValuesPerByte(kBits);
  const uint32_t table = kBits == 4 ? SharedAddress(tables.class4) : SharedAddress(tables.class2);
  uint32_t best = ~0u;
#pragma unroll
  for (int i = 0; i < GridOf(kBits).bytes; ++i) {
    const uint32_t distance = DistanceTo<kBits>(table, list.words[i / 4], i % 4,
                                                x.value + kValues * b, x.half + kValues / 2 * b);
    best = distance < best ? distance : best;
  }
  return best & 255u;
}

}  // namespace fq
