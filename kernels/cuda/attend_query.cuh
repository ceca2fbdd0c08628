// The kernel before attention: brings query rows into the coded domain (AttendQueryLayout).
#pragma once

#include "kernels/cuda/attend_params.h"
#include "kernels/cuda/attend_ptx.cuh"
#include "kernels/cuda/tables_layout.h"

namespace fq {

struct QueryParams {
  const AttendTaskInfo* tasks;
  int task_count;
  const void* q;       // [rows][d], FP16 or BF16
  std::byte* queries;  // [tasks] AttendQueryLayout
  float scale;         // softmax scale * log2(e)
};

// One warp's share of a task: components 16 share .. 16 share + 15 of its 8 rows.
template <int kHeadSize, bool kBf16>
class QueryShare {
 public:
  FQ_DEVICE QueryShare(const AttendTaskInfo& task, int share, float scale, std::byte* to)
      : task_(task), share_(share), scale_(scale), to_(to) {}

  FQ_DEVICE void LoadMatrix() {
    if (task_.record == nullptr) return;
    const uint4* fragments =
        reinterpret_cast<const uint4*>(task_.record + Tables().QueryFragments()) +
        share_ * kSteps * 32 + (threadIdx.x & 31);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) matrix_[s] = fragments[32 * s];
  }

  FQ_DEVICE void Prepare(const void* rows) {
    const int row = task_.rows[g_];
    const uint32_t* q = static_cast<const uint32_t*>(rows) +
                        static_cast<int64_t>(max(row, 0)) * (kHeadSize / 2) + t_;
    uint32_t b[kSteps][2], own[2];
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int i = 0; i < 2; ++i) b[s][i] = row < 0 ? 0u : q[8 * s + 4 * i];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) own[i] = row < 0 ? 0u : q[8 * share_ + 4 * i];
    StorePlain(own);
    if (task_.record == nullptr) return;
    float c[4] = {};
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const uint32_t a[4] = {matrix_[s].x, matrix_[s].y, matrix_[s].z, matrix_[s].w};
      Multiply<false>(c, a, Half(b[s][0]), Half(b[s][1]));
    }
    float2 bias = MeanBias(own);
    for (int part = 0; part <= task_.refined; ++part) StorePart(part, c, bias);
  }

 private:
  static constexpr int kSteps = kHeadSize / 16;
  FQ_DEVICE static constexpr AttendQueryLayout Layout() { return {kHeadSize}; }
  FQ_DEVICE static constexpr TablesLayout Tables() { return {kHeadSize}; }

  FQ_DEVICE const float* Vector(int offset) const {
    return reinterpret_cast<const float*>(task_.record + offset) + 16 * share_;
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
  // Where this lane's two words of rows at `offset` lie.
  FQ_DEVICE uint32_t* Fragment(int offset) const {
    return reinterpret_cast<uint32_t*>(to_ + offset) + share_ / 2 * 128 + (threadIdx.x & 31) * 4 +
           share_ % 2 * 2;
  }

  // The rows as they are, scaled.
  FQ_DEVICE void StorePlain(const uint32_t (&own)[2]) {
    uint32_t* to = Fragment(Layout().Plain());
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 pair = Unpack(own[i]);
      to[i] = PackPair<kBf16>(pair.x * scale_, pair.y * scale_);
    }
  }

  // This warp's share of q * mu, of rows 2t and 2t + 1.
  FQ_DEVICE float2 MeanBias(const uint32_t (&own)[2]) {
    const float* mu = Vector(Tables().Mu(0)) + 2 * t_;
    float dot = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 pair = Unpack(own[i]);
      dot += (pair.x * mu[8 * i] + pair.y * mu[8 * i + 1]) * scale_;
    }
    dot += __shfl_xor_sync(~0u, dot, 1);
    dot += __shfl_xor_sync(~0u, dot, 2);  // of row g
    return make_float2(__shfl_sync(~0u, dot, 8 * t_), __shfl_sync(~0u, dot, 8 * t_ + 4));
  }

  // `c` has rows 2t, 2t + 1 of components g, g + 8; transposed, a lane has two neighbouring
  // components of row g. Class 8 adds 1152 to each code of a score: `bias` takes that away.
  FQ_DEVICE void StorePart(int part, const float (&c)[4], float2& bias) {
    const float* unit = Vector(Tables().Unit(0, part)) + g_;
    const float* is_class8 = Vector(Tables().IsClass8(part)) + g_;
    uint32_t* to = Fragment(Layout().Coded(part));
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float factor = scale_ * unit[8 * i];
      const uint32_t pair = PackPair<false>(c[2 * i] * factor, c[2 * i + 1] * factor);
      to[i] = Transpose(pair);
      const float2 rounded = UnpackHalves(pair);
      sum.x -= 1152.0f * is_class8[8 * i] * rounded.x;
      sum.y -= 1152.0f * is_class8[8 * i] * rounded.y;
    }
#pragma unroll
    for (int step = 4; step < 32; step <<= 1) {
      sum.x += __shfl_xor_sync(~0u, sum.x, step);
      sum.y += __shfl_xor_sync(~0u, sum.y, step);
    }
    bias.x += sum.x;
    bias.y += sum.y;
    if (g_ == 0) {
      reinterpret_cast<float2*>(to_ + Layout().Bias(part + 1))[share_ * (kAttendRows / 2) + t_] =
          bias;
    }
  }

  const AttendTaskInfo& task_;
  const int share_;
  const float scale_;
  std::byte* const to_;
  uint4 matrix_[kSteps];
  const int g_ = static_cast<int>(threadIdx.x & 31) / 4, t_ = static_cast<int>(threadIdx.x & 3);
};

// Tasks of a thread block: those of a head share its matrix in L1.
FQ_HD constexpr int QueryTasks(int head_size) { return 256 / head_size; }
inline constexpr int kQueryThreads = 512;

// Grid: tasks / QueryTasks. Block: a warp for each 16 components of a task. The matrix is fetched
// while the kernel before still runs; attention may start, and fill its tables, when that is done.
template <int kHeadSize, bool kBf16>
__global__ void __launch_bounds__(kQueryThreads)
    PrepareQueries(const __grid_constant__ QueryParams params) {
  constexpr AttendQueryLayout kLayout{kHeadSize};
  constexpr int kShares = kHeadSize / 16;
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int task = static_cast<int>(blockIdx.x) * QueryTasks(kHeadSize) + warp / kShares;
  if (task >= params.task_count) return;
  QueryShare<kHeadSize, kBf16> share(params.tasks[task], warp % kShares, params.scale,
                                     params.queries + static_cast<size_t>(task) * kLayout.Bytes());
  share.LoadMatrix();
  WaitForPrevious();
  LetNextStart();
  share.Prepare(params.q);
}

}  // namespace fq
