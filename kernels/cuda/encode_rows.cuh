// An engine's rows in shared memory as the encoder multiplies them: FP16, without NaN and the like.
#pragma once

#include "kernels/cuda/encode_side.cuh"
#include "kernels/cuda/page_rows.cuh"

namespace fq {

// Which eight channels of which tokens a thread brings: every `step`-th from `first` on.
template <int kHeadSize>
struct RowShare {
  static constexpr int kPerRow = kHeadSize / 8;
  int first, step, channel;

  __device__ explicit RowShare(int threads) {
    const int thread = static_cast<int>(threadIdx.x);
    step = threads / kPerRow;
    first = thread < step * kPerRow ? thread / kPerRow : kPageTokens;
    channel = 8 * (thread % kPerRow);
  }
  __device__ uint4* Shared(int token) const {
    return reinterpret_cast<uint4*>(SharedRow<kHeadSize>(token) + 2 * channel);
  }
};

__device__ inline uint4 PackEight(const float (&x)[8]) {
  return make_uint4(PackHalves(x[0], x[1]), PackHalves(x[2], x[3]), PackHalves(x[4], x[5]),
                    PackHalves(x[6], x[7]));
}

// zero + 0 * each of the pairs: NaN where one is not finite.
__device__ inline uint32_t AddNothing(uint32_t zero, const uint4& pairs) {
  for (uint32_t pair : {pairs.x, pairs.y, pairs.z, pairs.w}) zero = AddNothing(zero, pair);
  return zero;
}
__device__ inline bool IsZero(uint32_t pair) { return pair << 1 == 0; }

// Channels of a row with NaN, infinities or the like: NaN becomes the mean, values end at the
// range.
template <int kHeadSize>
__device__ uint4 PackUnusual(const EncodeSide& side, int channel, float scale, float (&x)[8]) {
  constexpr CoderLayout kLayout{kHeadSize};
  const float* mu = At<float>(side.coder, kLayout.Mu()) + channel;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float value = x[i] != x[i] ? mu[i] : Clamp(x[i], kInputLimit);
    x[i] = Clamp(value * scale, kInputLimit);
  }
  return PackEight(x);
}

// Begins to copy FP16 rows, which the transform takes as they are. Rows that the page does not have
// are 0.
template <int kHeadSize>
__device__ void BeginRows(const std::byte* base, int threads) {
  const RowShare<kHeadSize> share(threads);
  const std::byte* from = base + 2 * share.channel;
  uint32_t to = SharedAddress(share.Shared(share.first));
  const int tokens = Shared().job.tokens;
  int token = share.first;
#pragma unroll 4
  for (; token < tokens; token += share.step, to += share.step * RowBytes(kHeadSize)) {
    BeginCopy(from + 2 * Shared().offsets[token], to);
  }
  for (; token < kPageTokens; token += share.step) *share.Shared(token) = make_uint4(0, 0, 0, 0);
}

// Looks at what the thread's copies brought.
template <int kHeadSize>
__device__ void CheckRows(const EncodeSide& side, int threads) {
  const RowShare<kHeadSize> share(threads);
  uint32_t zero = 0;
#pragma unroll 4
  for (int token = share.first; token < kPageTokens; token += share.step) {
    zero = AddNothing(zero, *share.Shared(token));
  }
  if (IsZero(zero)) return;
#pragma unroll 1
  for (int token = share.first; token < kPageTokens; token += share.step) {
    float x[8];
    WidenRaw(DType::kF16, RawChannels{{*share.Shared(token)}}, x);
    *share.Shared(token) = PackUnusual<kHeadSize>(side, share.channel, 1.0f, x);
  }
}

// Rows of another type, scaled by a power of two.
template <int kHeadSize>
__device__ void ConvertRows(const EncodeSide& side, DType dtype, const std::byte* base,
                            int threads) {
  constexpr CoderLayout kLayout{kHeadSize};
  const RowShare<kHeadSize> share(threads);
  const float scale = *At<float>(side.coder, kLayout.RowScale());
#pragma unroll 2
  for (int token = share.first; token < kPageTokens; token += share.step) {
    RawChannels raw = {};
    if (token < Shared().job.tokens) {
      raw = LoadRaw(dtype, base, Shared().offsets[token] + share.channel);
    }
    float x[8], scaled[8], largest = 0.0f;
    WidenRaw(dtype, raw, x);
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      largest = fmaxf(largest, fabsf(x[c]));
      scaled[c] = x[c] * scale;
    }
    uint4 pairs = PackEight(scaled);
    if (!IsZero(AddNothing(0, pairs)) || largest > kInputLimit) {
      pairs = PackUnusual<kHeadSize>(side, share.channel, scale, x);
    }
    *share.Shared(token) = pairs;
  }
}

// Brings the rows of the page; needs a barrier behind it.
template <int kHeadSize>
__device__ void BringRows(const EncodeSide& side, DType dtype, const std::byte* base, int threads) {
  if (dtype == DType::kF16) {
    BeginRows<kHeadSize>(base, threads);
    FinishCopies();
    CheckRows<kHeadSize>(side, threads);
  } else {
    ConvertRows<kHeadSize>(side, dtype, base, threads);
    FinishCopies();
  }
}

}  // namespace fq
