#include "kernels/cuda/merge_partials.h"

#include "kernels/cuda/attend_ptx.cuh"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/launch.h"

namespace fq {
namespace {

constexpr int kWarps = 8;  // of a thread block; a row each
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.693147180559945f;

struct MergePartialsParams {
  AttendPartial partials[kMaxPartials];
  int count;
  MergedRows to;
};

// Shares of the partials in a row, and its log-sum-exp.
struct RowWeights {
  float share[kMaxPartials];
  float lse;

  FQ_DEVICE RowWeights(const MergePartialsParams& p, int row) {
    float top = MinusInfinity(), sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kMaxPartials; ++i) {
      share[i] = i < p.count ? p.partials[i].lse[row] * kLog2E : MinusInfinity();
      top = fmaxf(top, share[i]);
    }
    if (top == MinusInfinity()) top = 0.0f;
#pragma unroll
    for (int i = 0; i < kMaxPartials; ++i) {
      share[i] = Exp2(share[i] - top);
      sum += share[i];
    }
    lse = sum == 0.0f ? MinusInfinity() : (top + log2f(sum)) * kLn2;
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
    for (int i = 0; i < kMaxPartials; ++i) share[i] *= inverse;
  }
};

template <bool kBf16>
FQ_DEVICE float2 UnpackPair(uint32_t pair) {
  if constexpr (!kBf16) return UnpackHalves(pair);
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xFFFF0000u));
}

template <bool kBf16>
__global__ void __launch_bounds__(kWarps * 32) MergeRows(const MergePartialsParams p) {
  const int row = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x & 31), pairs = p.to.head_size / 2;
  if (row >= p.to.rows) return;
  const RowWeights weights(p, row);
  const size_t begin = static_cast<size_t>(row) * pairs;
  for (int pair = lane; pair < pairs; pair += 32) {
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < kMaxPartials; ++i) {
      // A part without tokens may hold anything.
      if (i >= p.count || weights.share[i] == 0.0f) continue;
      const float2 part =
          UnpackPair<kBf16>(static_cast<const uint32_t*>(p.partials[i].out)[begin + pair]);
      sum.x += weights.share[i] * part.x;
      sum.y += weights.share[i] * part.y;
    }
    static_cast<uint32_t*>(p.to.out)[begin + pair] = PackPair<kBf16>(sum.x, sum.y);
  }
  __syncwarp();  // every lane has read the partials' lse
  if (lane == 0) p.to.lse[row] = weights.lse;
}

}  // namespace

absl::Status MergePartials(absl::Span<const AttendPartial> partials, const MergedRows& to,
                           cudaStream_t stream) {
  if (partials.empty() || partials.size() > kMaxPartials) {
    return absl::InvalidArgumentError(
        absl::StrCat(partials.size(), " partials, not 1 to ", kMaxPartials));
  }
  if (to.rows < 0 || to.head_size <= 0 || to.head_size % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "rows = ", to.rows, ", head_size = ", to.head_size, ": not rows of FP16 pairs"));
  }
  if (to.rows == 0) return absl::OkStatus();
  MergePartialsParams params = {};
  for (const AttendPartial& partial : partials) params.partials[params.count++] = partial;
  params.to = to;
  const LaunchShape shape = {(to.rows + kWarps - 1) / kWarps, kWarps * 32};
  FQ_RETURN_IF_CUDA_ERROR(
      Launch(to.bf16 ? MergeRows<true> : MergeRows<false>, shape, stream, params));
  return absl::OkStatus();
}

}  // namespace fq
