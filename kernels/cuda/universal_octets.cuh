// Eight tokens of one side of a universal page, as a warp holds them: what its codes are made of
// (FORMAT.md sections 2 and 6). The sums are those of the CPU, in its order.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/codec/quantise.h"
#include "kernels/codec/universal.h"
#include "kernels/cuda/group_codes.cuh"
#include "kernels/cuda/page_rows.cuh"

namespace fq {

inline constexpr int kOctetTokens = 8, kOctets = kPageTokens / kOctetTokens;

// Of octet o, whose codes are byte o of the eight bytes of each lane in each group. For K lane
// 4 g + t has channels 8 i + 2 t + e of token 8 o + g, for V channel 8 i + g of tokens
// 8 o + 2 t + e.
template <int kHeadSize>
struct Octet {
  static constexpr int kGroups = kHeadSize / kGroupChannels;
  float value[kGroups][2];  // [i][e]
};

// Of a row in shared memory; what is added keeps banks apart.
FQ_HD constexpr int OctetRowBytes(int head_size, int element) {
  return element * head_size + (element == 2 ? 16 : 32);
}

// Butterflies of channels that lie in two lanes.
template <int kHeadSize>
__device__ void CrossLanes(Octet<kHeadSize>* x, int lane, int mask) {
  const float sign = (lane & mask) != 0 ? -1.0f : 1.0f;
#pragma unroll
  for (int i = 0; i < Octet<kHeadSize>::kGroups; ++i) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      // The product is exact, so that this is the sum or the difference.
      x->value[i][e] = fmaf(x->value[i][e], sign, FromLaneXor(x->value[i][e], mask));
    }
  }
}

// Orthonormal Walsh-Hadamard transform over the channels of every block.
template <int kHeadSize, Side kSide>
__device__ void HadamardOctet(Octet<kHeadSize>* x, int lane) {
  constexpr int kBlock = HadamardBlock(kHeadSize) / kGroupChannels;  // in groups
  if constexpr (kSide == Side::kKey) {
#pragma unroll
    for (auto& pair : x->value) {
      const Butterfly butterfly = HadamardButterfly(pair[0], pair[1], 1.0f);
      pair[0] = butterfly.sum;
      pair[1] = butterfly.difference;
    }
    CrossLanes(x, lane, 1);
    CrossLanes(x, lane, 2);
  } else {
    CrossLanes(x, lane, 4);
    CrossLanes(x, lane, 8);
    CrossLanes(x, lane, 16);
  }
  const float orthonormal = 1.0f / sqrtf(static_cast<float>(HadamardBlock(kHeadSize)));
#pragma unroll
  for (int half = 1; half < kBlock; half *= 2) {
    const float scale = 2 * half == kBlock ? orthonormal : 1.0f;
#pragma unroll
    for (int i = 0; i < Octet<kHeadSize>::kGroups; ++i) {
      if ((i & half) != 0) continue;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const Butterfly butterfly = HadamardButterfly(x->value[i][e], x->value[i + half][e], scale);
        x->value[i][e] = butterfly.sum;
        x->value[i + half][e] = butterfly.difference;
      }
    }
  }
}

// What the values of a lane are divided or multiplied with: of its token, or of its two.
template <Side kSide>
struct OctetNorms {
  float norm[2];  // [e]

  __device__ OctetNorms(const std::byte* page, int head_size, int octet, int lane) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int token = kSide == Side::kKey ? lane >> 2 : 2 * (lane & 3) + e;
      norm[e] = HalfToFloat(*reinterpret_cast<const uint16_t*>(
          page + UniversalNormOffset(kSide, kOctetTokens * octet + token, head_size)));
    }
  }
};

// Correctly rounded x / norm for FP16 norms and `inverse` = 1 / norm: what the first quotient
// leaves is exact, and the true quotient is never nearer to the middle between two FP32 than
// 2^-36 of it. (Quotients that are no normal FP32 may be off in their last bit.)
__device__ inline float DivideByHalf(float x, float norm, float inverse) {
  const float quotient = x * inverse;
  return fmaf(fmaf(-quotient, norm, x), inverse, quotient);
}

// The levels around a value: cells of 1/4, each with at most one midpoint of two levels.
struct LevelCell {
  float midpoint;  // of levels `below` and `below` + 1, or infinity
  uint32_t below;
};
inline constexpr int kLevelCells = 21, kLevelCopies = 16;
inline constexpr float kCellsPerUnit = 4.0f;

// The outer cells have no end.
__device__ inline LevelCell LevelCellOf(int cell) {
  constexpr LevelTable kTable = LloydMaxLevels();
  const float middle = static_cast<float>(cell - kLevelCells / 2) / kCellsPerUnit;
  LevelCell found = {INFINITY, 0};
#pragma unroll
  for (int i = 0; i + 1 < kLevels; ++i) {
    const float midpoint = (kTable.level[i] + kTable.level[i + 1]) * 0.5f;
    if (midpoint <= middle - 0.5f / kCellsPerUnit) {
      ++found.below;
    } else if (midpoint <= middle + 0.5f / kCellsPerUnit) {
      found.midpoint = midpoint;
    }
  }
  return found;
}

// NearestLevel of a number; `cells` is the shared address of the lane's copy in
// [kLevelCells][kLevelCopies].
__device__ inline uint32_t LevelOf(float value, uint32_t cells) {
  constexpr float kLast = kLevelCells - 1;
  constexpr float kInteger = 8388608.0f;  // 2^23: what is added to it is rounded to an integer
  constexpr uint32_t kBytes = kLevelCopies * sizeof(LevelCell);
  const float part = Saturate(fmaf(value, kCellsPerUnit / kLast, 0.5f));
  const uint32_t cell = FloatBits(fmaf(part, kLast, kInteger)) - FloatBits(kInteger);
  const float2 found = LoadSharedPair(cells + cell * kBytes);
  return FloatBits(found.y) + (value > found.x ? 1u : 0u);
}

}  // namespace fq
