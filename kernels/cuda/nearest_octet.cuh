// Nearest entries of class 1, eight values a byte, by tensor cores: candidate lists are too long in
// eight dimensions. Scores are those of nearest_entry.cuh to 2^-18 of their size, so entries nearer
// to each other than that may be taken for one another.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/codec/float_convert.h"
#include "kernels/cuda/group_codes.cuh"
#include "kernels/cuda/warp.cuh"

namespace fq {

// What a warp needs in shared memory to pass values and codes between its lanes.
struct OctetScratch {
  uint4 values[2][32];  // [term][byte]: eight FP16
  uint8_t codes[32];
};

// Scores in FP32 whose lowest bits say which of a lane's 32 entries they belong to.
inline constexpr uint32_t kTagMask = 31;

__device__ inline float Tagged(float score, int tag) {
  return FloatFromBits((FloatBits(score) & ~kTagMask) | static_cast<uint32_t>(tag));
}

// An entry found for a byte, and its score.
struct ByteBest {
  float score;
  int code;
};

// Of a tagged score of a lane 4 g + t.
__device__ inline ByteBest Untagged(float score, int g) {
  return {score, 8 * (31 - static_cast<int>(FloatBits(score) & kTagMask)) + g};
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

// Tagged score of the best of the entries g and g + 8 of every 16, for columns 2 t and 2 t + 1 of
// two tiles of bytes from `first_tile` on.
__device__ inline void ScoreOctets(const uint32_t* tables, const float* starts, int lane,
                                   const OctetScratch& scratch, int first_tile, float* score) {
  const int g = lane >> 2, t = lane & 3;
  uint32_t b[2][2];
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
    const int row = 8 * (first_tile + tile) + g;
#pragma unroll
    for (int term = 0; term < 2; ++term) {
      b[tile][term] = reinterpret_cast<const uint32_t*>(&scratch.values[term][row])[t];
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) score[i] = -INFINITY;
  const uint32_t* words = tables + TableWord(1) + (t >> 1);
#pragma unroll 1
  for (int i = 0; i < kTableEntries / 16; ++i) {
    const int first = 16 * i + g, second = first + 8, tag = 31 - 2 * i;
    const uint32_t a0 = ChainPair(words[2 * first], t & 1);
    const uint32_t a1 = ChainPair(words[2 * second], t & 1);
    const float start0 = starts[first], start1 = starts[second];
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      float d[4] = {start0, start0, start1, start1};
      MultiplyAdd(d, make_uint4(a0, a1, a0, a1), b[tile][0], b[tile][1]);
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        const float pair = fmaxf(Tagged(d[column], tag), Tagged(d[2 + column], tag - 1));
        score[2 * tile + column] = fmaxf(score[2 * tile + column], pair);
      }
    }
  }
}

// The lanes of a column compare and split their eight bytes: in the end lane 4 g + t has the best
// entry of column 2 t + (g & 1) of tile g >> 1.
__device__ inline ByteBest CombineOctets(int lane, const float (&score)[8]) {
  const int g = lane >> 2;
  ByteBest best[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool upper = (g & 4) != 0;
    const float other = FromLaneXor(upper ? score[i] : score[i + 4], 16);
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

// The entry nearest to the eight values of the lane's byte; for a whole warp. `starts` are
// -|entry|^2 / 2 of the class-1 table.
__device__ inline int NearestOctet(const uint32_t* tables, const float* starts, const float* x,
                                   int lane, OctetScratch* scratch) {
  float score[8];
  ShareOctet(x, lane, scratch);
  ScoreOctets(tables, starts, lane, *scratch, 0, score);
  ScoreOctets(tables, starts, lane, *scratch, 2, score + 4);
  const ByteBest found = CombineOctets(lane, score);
  const int g = lane >> 2, t = lane & 3, column = 2 * t + (g & 1), tile = g >> 1;
  scratch->codes[4 * column + tile] = static_cast<uint8_t>(found.code);
  WarpBarrier();
  const int code = scratch->codes[lane];
  WarpBarrier();
  return code;
}

}  // namespace fq
