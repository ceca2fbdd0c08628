// Nearest-entry search of the encoder for the classes 4 and 2: the same sums in the same order as
// kernels/codec/nearest.h, and so the same entry for the same values.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/group_codes.cuh"
#include "kernels/cuda/nearest_lists.cuh"

namespace fq {

// The tables of one side and part as the search reads them, in shared memory. A start is
// -|entry|^2 / 2.
struct SearchTables {
  uint2 class4[kTableEntries], class2[kTableEntries];  // word of the entry, bits of the start
  // Entries of class 1 as rows of MMAs, 16 entries each (nearest_octet.cuh).
  uint2 octet_rows[kTableEntries / 16][32];
  float4 octet_starts[kTableEntries / 16][8];
};

// An entry, and its score for x = 0.
template <int kValues>
struct Entry {
  float value[kValues];
  float start;
};

// Of class 4 or 2 out of its word and start.
template <int kBits>
__device__ inline auto EntryOfWords(const uint2& words) {
  static_assert(kBits == 4 || kBits == 2);
  Entry<ValuesPerByte(kBits)> entry;
  if constexpr (kBits == 4) {
    WidenWord(words.x, entry.value);
  } else {
    WidenChain(words.x, entry.value);
  }
  entry.start = FloatFromBits(words.y);
  return entry;
}

template <int kBits>
__device__ inline auto EntryOf(const SearchTables& tables, int code) {
  return EntryOfWords<kBits>(kBits == 4 ? tables.class4[code] : tables.class2[code]);
}

// Score of an entry: the higher, the nearer.
template <int kValues>
__device__ inline float ScoreOf(const Entry<kValues>& entry, const float* x) {
  float score = entry.start;
#pragma unroll
  for (int i = 0; i < kValues; ++i) score = fmaf(x[i], entry.value[i], score);
  return score;
}

// The best entry so far, by its code or address: ties go to the first that was looked at, NaN
// scores to none.
struct Best {
  uint32_t where;
  float score = -INFINITY;

  __device__ void Look(uint32_t other, float other_score) {
    if (other_score > score) {
      score = other_score;
      where = other;
    }
  }
};

// Looks at all entries for the values of lane `source`, by the whole warp. Entries are
// entry_of(code).
template <int kValues, typename EntryOf>
__device__ inline int NearestOfAll(const EntryOf& entry_of, const float* x, int lane, int source) {
  float own[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) own[i] = FromLane(x[i], source);
  Best best{static_cast<uint32_t>(lane)};
#pragma unroll 1
  for (int code = lane; code < kTableEntries; code += 32) {
    best.Look(static_cast<uint32_t>(code), ScoreOf(entry_of(code), own));
  }
  for (int mask = 16; mask > 0; mask >>= 1) {
    const float score = FromLaneXor(best.score, mask);
    const uint32_t code = FromLaneXor(best.where, mask);
    if (score > best.score || (score == best.score && code < best.where)) best = {code, score};
  }
  return static_cast<int>(best.where);
}

// `code`, or what a look at all entries finds where `is_lost`; by the whole warp.
template <int kValues, typename EntryOf>
__device__ inline int FoundOrNearestOfAll(bool is_lost, int code, const EntryOf& entry_of,
                                          const float* x, int lane) {
  for (uint32_t lost = Ballot(is_lost); lost != 0; lost &= lost - 1) {
    const int source = LowestBit(lost);
    const int other = NearestOfAll<kValues>(entry_of, x, lane, source);
    if (lane == source) code = other;
  }
  return code;
}

// The list of one byte.
template <int kBits>
struct CandidateList {
  static constexpr int kWords = GridOf(kBits).bytes / 4;
  uint32_t words[kWords];
};

// The list of the cell of x; kNoList beyond the grid and without lists.
template <int kBits>
__device__ inline CandidateList<kBits> ListOf(const std::byte* lists, const float* x) {
  constexpr ListGrid kGrid = GridOf(kBits);
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kGrid.values; ++i) largest = fmaxf(largest, fabsf(x[i]));
  CandidateList<kBits> list = {};
  list.words[0] = kNoList;
  if (lists == nullptr || !(largest < kListLimit)) return list;
  const std::byte* from = lists + CellOf<kBits>(x) * kGrid.bytes;
  if constexpr (kBits == 4) {
    const uint2 two = LoadConstant<uint2>(from);
    list.words[0] = two.x;
    list.words[1] = two.y;
  } else {
    const uint4 four = LoadConstant<uint4>(from);
    list.words[0] = four.x;
    list.words[1] = four.y;
    list.words[2] = four.z;
    list.words[3] = four.w;
  }
  return list;
}

// Looks at the four entries of a word of a list; `table` is the shared address of its class.
template <int kBits>
__device__ inline void LookAtFour(uint32_t table, uint32_t word, const float* x, Best* best) {
  uint32_t at[4];
  uint2 words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    at[i] = DotBytes(word, static_cast<uint32_t>(sizeof(uint2)) << (8 * i), table);
    words[i] = LoadShared(at[i]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) best->Look(at[i], ScoreOf(EntryOfWords<kBits>(words[i]), x));
}

// The nearest of the candidates; entry 0 without a list.
template <int kBits>
__device__ inline int NearestOfList(const SearchTables& tables, CandidateList<kBits> list,
                                    const float* x) {
  constexpr int kWords = CandidateList<kBits>::kWords;
  const uint32_t table = SharedAddress(kBits == 4 ? tables.class4 : tables.class2);
  Best best{table};
  const uint32_t behind = list.words[kWords - 1] >> 24;
  // A list is at its end where the next word begins with the entry that this one ends with.
  for (bool more = list.words[0] != kNoList; more;) {
    const uint32_t word = list.words[0];
    LookAtFour<kBits>(table, word, x, &best);
#pragma unroll
    for (int i = 0; i + 1 < kWords; ++i) list.words[i] = list.words[i + 1];
    list.words[kWords - 1] = behind;
    more = (((word >> 24) ^ list.words[0]) & 255u) != 0;
  }
  return static_cast<int>((best.where - table) / sizeof(uint2));
}

}  // namespace fq
