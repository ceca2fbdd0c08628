// The kernel before attention: brings query rows into the coded domain (AttendQueryLayout).
#pragma once

#include "kernels/cuda/attend_params.h"
#include "kernels/cuda/attend_ptx.cuh"
#include "kernels/cuda/tables_layout.h"

namespace fq {

struct QueryParams {
  const AttendTaskInfo* tasks;  // [blocks of the grid]
  const void* q;                // [rows][d], FP16 or BF16
  std::byte* queries;           // [tasks] AttendQueryLayout
  float scale;                  // softmax scale * log2(e)
};

// One warp of a task: 16 components of its 8 rows.
template <int kHeadSize, bool kBf16>
class QueryWarp {
 public:
  FQ_DEVICE QueryWarp(const QueryParams& params)
      : params_(params),
        task_(params.tasks[blockIdx.x]),
        to_(params.queries + static_cast<size_t>(blockIdx.x) * Layout().Bytes()) {}

  FQ_DEVICE void LoadRows() {
    const int row = task_.rows[g_];
    const uint32_t* q = static_cast<const uint32_t*>(params_.q) +
                        static_cast<int64_t>(max(row, 0)) * (kHeadSize / 2) + t_;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int i = 0; i < 2; ++i) q_[s][i] = row < 0 ? 0u : q[8 * s + 4 * i];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) own_[i] = row < 0 ? 0u : q[8 * warp_ + 4 * i];
  }

  // The rows as they are, scaled, and this warp's share of q * mu: bias[row].
  FQ_DEVICE void StorePlain(float* bias) {
    const float* mu = task_.record == nullptr ? nullptr : Vector(Tables().Mu(0)) + 16 * warp_;
    uint32_t* to =
        reinterpret_cast<uint32_t*>(to_ + Layout().Plain()) + g_ * (kHeadSize / 2) + 8 * warp_ + t_;
    float dot = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 pair = Unpack(own_[i]);
      to[4 * i] = PackPair<kBf16>(pair.x * params_.scale, pair.y * params_.scale);
      const int c = 8 * i + 2 * t_;
      if (mu != nullptr) dot += (pair.x * mu[c] + pair.y * mu[c + 1]) * params_.scale;
    }
    dot += __shfl_xor_sync(~0u, dot, 1);
    dot += __shfl_xor_sync(~0u, dot, 2);
    if (t_ == 0) bias[g_] = dot;
  }

  // The rows in the coded domain, and this warp's share of what class 8 adds to a score:
  // bias[part][row].
  FQ_DEVICE void StoreCoded(float (*bias)[kAttendRows]) {
    float c[4] = {};
    const uint4* matrix = reinterpret_cast<const uint4*>(task_.record + Tables().QueryFragments()) +
                          warp_ * kSteps * 32 + (threadIdx.x & 31);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const uint4 m = matrix[32 * s];
      const uint32_t a[4] = {m.x, m.y, m.z, m.w};
      Multiply<false>(c, a, Half(q_[s][0]), Half(q_[s][1]));
    }
    for (int part = 0; part <= task_.refined; ++part) StorePart(part, c, bias[part]);
  }

 private:
  static constexpr int kSteps = kHeadSize / 16;
  FQ_DEVICE static constexpr AttendQueryLayout Layout() { return {kHeadSize}; }
  FQ_DEVICE static constexpr TablesLayout Tables() { return {kHeadSize}; }

  FQ_DEVICE const float* Vector(int offset) const {
    return reinterpret_cast<const float*>(task_.record + offset);
  }
  FQ_DEVICE static float2 Unpack(uint32_t pair) {
    if constexpr (kBf16) {
      return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xFFFF0000u));
    } else {
      return UnpackHalves(pair);
    }
  }
  FQ_DEVICE static uint32_t Half(uint32_t pair) {
    if constexpr (!kBf16) return pair;
    const float2 values = Unpack(pair);
    return PackPair<false>(values.x, values.y);
  }

  // `c` has rows 2t, 2t + 1 of components g, g + 8; transposed, a lane has two neighbouring
  // components of row g.
  FQ_DEVICE void StorePart(int part, const float (&c)[4], float* bias) {
    const float* unit = Vector(Tables().Unit(0, part)) + 16 * warp_ + g_;
    const float* is_class8 = Vector(Tables().IsClass8(part)) + 16 * warp_ + g_;
    uint32_t* to = reinterpret_cast<uint32_t*>(to_ + Layout().Coded(part)) + g_ * (kHeadSize / 2) +
                   8 * warp_ + t_;
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float factor = params_.scale * unit[8 * i];
      const uint32_t pair = PackPair<false>(c[2 * i] * factor, c[2 * i + 1] * factor);
      to[4 * i] = Transpose(pair);
      const float2 rounded = UnpackHalves(pair);
      sum.x -= 1152.0f * is_class8[8 * i] * rounded.x;
      sum.y -= 1152.0f * is_class8[8 * i] * rounded.y;
    }
#pragma unroll
    for (int step = 4; step < 32; step <<= 1) {
      sum.x += __shfl_xor_sync(~0u, sum.x, step);
      sum.y += __shfl_xor_sync(~0u, sum.y, step);
    }
    if (g_ == 0) {
      bias[2 * t_] = sum.x;
      bias[2 * t_ + 1] = sum.y;
    }
  }

  const QueryParams& params_;
  const AttendTaskInfo& task_;
  std::byte* const to_;
  const int warp_ = static_cast<int>(threadIdx.x / 32);
  const int g_ = static_cast<int>(threadIdx.x & 31) / 4, t_ = static_cast<int>(threadIdx.x & 3);
  uint32_t q_[kSteps][2];
  uint32_t own_[2];  // q_[warp_]
};

// Grid: tasks. Block: a warp for each 16 components.
template <int kHeadSize, bool kBf16>
__global__ void __launch_bounds__(kHeadSize * 2)
    PrepareQueries(const __grid_constant__ QueryParams params) {
  constexpr int kWarps = kHeadSize / 16;
  constexpr AttendQueryLayout kLayout{kHeadSize};
  __shared__ float bias[kWarps][3][kAttendRows];  // of class 8 in base, in refinement; of the mean
  LetNextStart();
  QueryWarp<kHeadSize, kBf16> warp(params);
  const int index = static_cast<int>(threadIdx.x / 32), thread = static_cast<int>(threadIdx.x);
  const bool coded = params.tasks[blockIdx.x].record != nullptr;
  warp.LoadRows();
  warp.StorePlain(bias[index][2]);
  if (coded) warp.StoreCoded(bias[index]);
  __syncthreads();
  if (!coded || thread >= (1 + params.tasks[blockIdx.x].refined) * kAttendRows) return;
  const int row = thread % kAttendRows, parts = 1 + thread / kAttendRows;
  float sum = 0.0f;
  for (int i = 0; i < kWarps; ++i) {
    sum += bias[i][2][row] + bias[i][0][row] + (parts == 2 ? bias[i][1][row] : 0.0f);
  }
  reinterpret_cast<float*>(params.queries + static_cast<size_t>(blockIdx.x) * kLayout.Bytes() +
                           kLayout.Bias(parts))[row] = sum;
}

}  // namespace fq
