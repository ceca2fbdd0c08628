// Nearest entries of class 1, eight values a byte, by tensor cores: candidate lists are too long in
// eight dimensions. Scores are those of nearest_entry.cuh to 2^-18 of their size, so entries nearer
// to each other than that may be taken for one another.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/codec/float_convert.h"
#include "kernels/cuda/nearest_entry.cuh"
#include "kernels/cuda/warp.cuh"

namespace fq {

// What a warp needs in shared memory to pass values and codes between its lanes.
struct OctetScratch {
  uint4 values[2][32];  // [term][byte]: eight FP16
  uint8_t codes[32];
  bool found[32];
};

// Scores are compared as integers, which is the order of positive FP32; what is added to every
// score makes that of the nearest entry positive.
inline constexpr float kScoreOffset = 4.0f;

// The lowest bits of a score say which of a lane's 32 entries it belongs to.
inline constexpr uint32_t kTagMask = 31;

__device__ inline int32_t Tagged(float score, int tag) {
  return static_cast<int32_t>((FloatBits(score) & ~kTagMask) | static_cast<uint32_t>(tag));
}

__device__ inline int32_t Highest(int32_t a, int32_t b, int32_t c) {
  const int32_t first = a > b ? a : b;
  return first > c ? first : c;
}

// An entry found for a byte, and its score.
struct ByteBest {
  int32_t score;
  int code;
};

// Of a tagged score of a lane 4 g + t.
__device__ inline ByteBest Untagged(int32_t score, int g) {
  return {score, 8 * (31 - static_cast<int>(static_cast<uint32_t>(score) & kTagMask)) + g};
}

// Ties go to the lower entry.
__device__ inline ByteBest Better(const ByteBest& a, const ByteBest& b) {
  const bool second = b.score > a.score || (b.score == a.score && b.code < a.code);
  return {second ? b.score : a.score, second ? b.code : a.code};
}

// Puts the eight values of the lane's byte where the warp finds them, as FP16 in two terms.
__device__ inline void ShareOctet(const float* x, int lane, OctetScratch* scratch) {
  uint32_t high[4], low[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float a = Clamp(x[2 * i], kInputLimit), b = Clamp(x[2 * i + 1], kInputLimit);
    high[i] = PackHalves(a, b);
    const float2 rounded = WidenHalves(high[i]);
    low[i] = PackHalves(a - rounded.x, b - rounded.y);
  }
  const int row = 8 * (lane & 3) + (lane >> 2);  // bytes of lanes 4 g + s: tile s, column g
  scratch->values[0][row] = make_uint4(high[0], high[1], high[2], high[3]);
  scratch->values[1][row] = make_uint4(low[0], low[1], low[2], low[3]);
  WarpBarrier();
}

// Puts an entry of class 1 into its place in the tables.
__device__ inline void PutOctet(const uint32_t* words, int code, SearchTables* tables) {
  float values[8];
  WidenEntry<1>(words, code, values);
  const float start = StartOf(values) + kScoreOffset;
  const int tile = code / 16, row = code % 8, half = code / 8 % 2;
  auto* starts = reinterpret_cast<float2*>(&tables->octet_starts[tile][row]);
  starts[half] = make_float2(start, start);
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    const uint32_t chain = words[TableWord(1) + 2 * code + (t >> 1)];
    auto* pairs = reinterpret_cast<uint32_t*>(&tables->octet_rows[tile][4 * row + t]);
    pairs[half] = ChainPair(chain, t & 1);
  }
}

__device__ inline Entry<8> OctetOf(const SearchTables& tables, int code) {
  const int tile = code / 16, row = code % 8, half = code / 8 % 2;
  Entry<8> entry;
  entry.start = reinterpret_cast<const float2*>(&tables.octet_starts[tile][row])[half].x;
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    const auto* pairs = reinterpret_cast<const uint32_t*>(&tables.octet_rows[tile][4 * row + t]);
    WidenWord(pairs[half], entry.value + 2 * t);
  }
  return entry;
}

// Tagged score of the best of the entries g and g + 8 of every 16, for columns 2 t and 2 t + 1 of
// the four tiles of bytes.
__device__ inline void ScoreOctets(const SearchTables& tables, int lane,
                                   const OctetScratch& scratch, int32_t (&score)[8]) {
  const int g = lane >> 2, t = lane & 3;
  uint32_t b[4][2];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint4* values = &scratch.values[i & 1][8 * (i >> 1) + g];
    b[i >> 1][i & 1] = reinterpret_cast<const uint32_t*>(values)[t];
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) score[i] = 0;
#pragma unroll 1
  for (int i = 0; i < kTableEntries / 16; ++i) {
    const int tag = 31 - 2 * i;
    const uint2 rows = tables.octet_rows[i][lane];
    const float4 four = tables.octet_starts[i][g];
    const float starts[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      float high[4], d[4];
      MultiplyHalf(high, starts, rows.x, rows.y, b[tile][0]);
      MultiplyHalf(d, high, rows.x, rows.y, b[tile][1]);
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        int32_t& best = score[2 * tile + column];
        best = Highest(best, Tagged(d[column], tag), Tagged(d[2 + column], tag - 1));
      }
    }
  }
}

// The lanes of a column compare and split their eight bytes: in the end lane 4 g + t has the best
// entry of column 2 t + (g & 1) of tile g >> 1.
__device__ inline ByteBest CombineOctets(int lane, const int32_t (&score)[8]) {
  const int g = lane >> 2;
  ByteBest best[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool upper = (g & 4) != 0;
    const int32_t other = FromLaneXor(upper ? score[i] : score[i + 4], 16);
    best[i] = Better(Untagged(upper ? score[i + 4] : score[i], g), Untagged(other, g ^ 4));
  }
#pragma unroll
  for (int half = 2; half > 0; half /= 2) {
    const bool upper = (g & half) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const ByteBest a = best[i], b = best[i + half];
      const ByteBest other{FromLaneXor(upper ? a.score : b.score, 4 * half),
                           FromLaneXor(upper ? a.code : b.code, 4 * half)};
      best[i] = Better({upper ? b.score : a.score, upper ? b.code : a.code}, other);
    }
  }
  return best[0];
}

// The entry nearest to the eight values of the lane's byte; for a whole warp.
__device__ inline int NearestOctet(const SearchTables& tables, const float* x, int lane,
                                   OctetScratch* scratch) {
  int32_t score[8];
  ShareOctet(x, lane, scratch);
  ScoreOctets(tables, lane, *scratch, score);
  const ByteBest found = CombineOctets(lane, score);
  const int g = lane >> 2, t = lane & 3, column = 2 * t + (g & 1), tile = g >> 1;
  scratch->codes[4 * column + tile] = static_cast<uint8_t>(found.code);
  scratch->found[4 * column + tile] = found.score > 0;
  WarpBarrier();
  const int code = scratch->codes[lane];
  const bool is_lost = !scratch->found[lane];
  WarpBarrier();
  return FoundOrNearestOfAll<8>(
      is_lost, code, [&](int other) { return OctetOf(tables, other); }, x, lane);
}

}  // namespace fq
