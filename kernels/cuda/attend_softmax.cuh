// Running softmax of one warp over 8 query rows. A lane (g, t) holds scores of tokens g, g + 8 of a
// tile for the rows 2t, 2t + 1. Device code, also compiled at run time.
#pragma once

#include "kernels/cuda/attend_params.h"
#include "kernels/cuda/attend_ptx.cuh"

namespace fq {

// Weights are 2^(score - maximum). The maximum follows the scores only when the weights of a lane
// would sum to more than kLimit: until then they stay within FP16, and nothing has to be rescaled.
class Softmax {
 public:
  static constexpr float kLimit = 4096.0f;

  // What the accumulators of a score start at: minus the maximum.
  FQ_DEVICE float2 Start() const { return make_float2(-max_[0], -max_[1]); }

  // Scores of rows 2t and 2t + 1 are `sign` times `bias` higher from here on.
  FQ_DEVICE void Shift(float2 bias, float sign) {
    max_[0] += sign * bias.x;
    max_[1] += sign * bias.y;
  }

  // Turns scores (relative to the maximum) of kCount tiles into weights in place and adds them up.
  // Calls rescale(c0, c1) when sums of rows 2t and 2t + 1 must be multiplied.
  template <int kCount, typename Rescale>
  FQ_DEVICE void Weigh(float (&scores)[kCount][4], const Rescale& rescale) {
    float weights[kCount][4], sum0 = 0.0f, sum1 = 0.0f;
    Raise<kCount>(scores, 0.0f, 0.0f, weights, &sum0, &sum1);
    // No `&&`: behind a branch the compiler adds the weights up a second time.
    const bool started = Started(), fits = started & (fmaxf(sum0, sum1) <= kLimit);
    if (__any_sync(~0u, !fits)) {
      float top0 = kNoMaximum, top1 = kNoMaximum;
      Top<kCount>(scores, &top0, &top1);
      if (started) {
        top0 = fmaxf(top0, 0.0f);
        top1 = fmaxf(top1, 0.0f);
      }
      const float c0 = started ? Exp2(-top0) : 0.0f, c1 = started ? Exp2(-top1) : 0.0f;
      max_[0] += top0;
      max_[1] += top1;
      sum_[0] *= c0;
      sum_[1] *= c1;
      rescale(c0, c1);
      Raise<kCount>(scores, top0, top1, weights, &sum0, &sum1);
    }
    sum_[0] += sum0;
    sum_[1] += sum1;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[j][e] = weights[j][e];
    }
  }

  // Maximum and sum of row 2t + i over all lanes; kNoMaximum and 0 when nothing was weighed.
  FQ_DEVICE float2 Stats(int i) {
    float sum = sum_[i];
#pragma unroll
    for (int step = 4; step < 32; step <<= 1) sum += __shfl_xor_sync(~0u, sum, step);
    return Started() ? make_float2(max_[i], sum) : make_float2(kNoMaximum, 0.0f);
  }

 private:
  template <int kCount>
  FQ_DEVICE void Raise(const float (&scores)[kCount][4], float top0, float top1,
                       float (&weights)[kCount][4], float* sum0, float* sum1) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) weights[j][e] = Exp2(scores[j][e] - (e & 1 ? top1 : top0));
      const float even = weights[j][0] + weights[j][2], odd = weights[j][1] + weights[j][3];
      *sum0 = j == 0 ? even : *sum0 + even;
      *sum1 = j == 0 ? odd : *sum1 + odd;
    }
  }

  template <int kCount>
  FQ_DEVICE void Top(const float (&scores)[kCount][4], float* top0, float* top1) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      *top0 = fmaxf(*top0, fmaxf(scores[j][0], scores[j][2]));
      *top1 = fmaxf(*top1, fmaxf(scores[j][1], scores[j][3]));
    }
#pragma unroll
    for (int step = 4; step < 32; step <<= 1) {
      *top0 = fmaxf(*top0, __shfl_xor_sync(~0u, *top0, step));
      *top1 = fmaxf(*top1, __shfl_xor_sync(~0u, *top1, step));
    }
  }

  // Whether anything was weighed. A sum that is not a number is no sum below 0.
  FQ_DEVICE bool Started() const { return !(sum_[0] < 0.0f); }

  float max_[2] = {0.0f, 0.0f}, sum_[2] = {-1.0f, -1.0f};
};

// Scores of tokens outside [begin, end) become minus infinity. `first` is the first token of tile
// 0.
template <int kCount>
FQ_DEVICE void MaskTokens(float (&scores)[kCount][4], int first, int begin, int end) {
  const int g = static_cast<int>(threadIdx.x & 31) >> 2;
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int token = first + 16 * j + g + 8 * (e >> 1);
      if (token < begin || token >= end) scores[j][e] = MinusInfinity();
    }
  }
}

// Weights of a tile as the B operand of the value product.
template <bool kBf16>
FQ_DEVICE void PackWeights(const float (&weights)[4], uint32_t (&b)[2]) {
  b[0] = Transpose(PackPair<kBf16>(weights[0], weights[1]));
  b[1] = Transpose(PackPair<kBf16>(weights[2], weights[3]));
}

}  // namespace fq
