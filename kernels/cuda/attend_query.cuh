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

// A pair of elements as FP32.
template <bool kBf16>
FQ_DEVICE float2 UnpackElements(uint32_t pair) {
  if constexpr (kBf16) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xFFFF0000u));
  } else {
    return UnpackHalves(pair);
  }
}

// Query rows as they are. Lane (g, t) of a warp gets the words 8s + 4i + t of a row, s < d / 16.
template <int kHeadSize>
struct PlainRows {
  const void* q;
  FQ_DEVICE void Load(int row, int t, uint32_t (&words)[kHeadSize / 16][2]) const {
#pragma unroll
    for (int s = 0; s < kHeadSize / 16; ++s) LoadShare(row, s, t, words[s]);
  }
  // Those of s = `share` alone.
  FQ_DEVICE void LoadShare(int row, int share, int t, uint32_t (&words)[2]) const {
    const uint32_t* from = static_cast<const uint32_t*>(q) +
                           static_cast<int64_t>(row) * (kHeadSize / 2) + 8 * share + t;
    words[0] = from[0];
    words[1] = from[4];
  }
};

// One warp's share of a task: components 16 share .. 16 share + 15 of its 8 rows.
template <int kHeadSize, bool kBf16>
class QueryShare {
 public:
  FQ_DEVICE QueryShare(const AttendTaskInfo& task, int share, float scale, std::byte* to)
      : task_(task), share_(share), scale_(scale), to_(to) {}

  // What the codec set says: this may be read while the kernel before still runs.
  FQ_DEVICE void LoadConstants() {
    if (task_.record == nullptr) return;
    const uint4* fragments = MatrixWords(Tables().QueryFragments()) + share_ * kSteps * 32;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) matrix_[s] = fragments[32 * s];
    if (kRemainderAhead && share_ == 0) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s)
        remainder_[s] = MatrixWords(Tables().QueryRemainder())[32 * s];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      mu_[i] = reinterpret_cast<const float2*>(Vector(Tables().Mu(0)))[t_ + 4 * i];
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        unit_[part][i] = Vector(Tables().Unit(0, part))[g_ + 8 * i];
        is_class8_[part][i] = Vector(Tables().IsClass8(part))[g_ + 8 * i];
      }
    }
  }

  template <typename Rows>
  FQ_DEVICE void Prepare(const Rows& rows) {
    const int row = task_.rows[g_];
    uint32_t b[kSteps][2] = {}, own[2] = {};
    if (row >= 0) {
      rows.Load(row, t_, b);
      rows.LoadShare(row, share_, t_, own);
    }
    StorePlain(own);
    if (task_.record == nullptr) return;
    float c[2][4] = {};  // two sums, so that they need not wait for each other
#pragma unroll
    for (int s = 0; s < kSteps; ++s) MultiplyStep(matrix_[s], b[s], c[s % 2]);
    if (share_ == 0) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        MultiplyStep(
            kRemainderAhead ? remainder_[s] : MatrixWords(Tables().QueryRemainder())[32 * s], b[s],
            c[s % 2]);
      }
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) c[0][e] += c[1][e];
    float2 bias = MeanBias(own);
    StorePart<0>(c[0], bias);
    if (task_.refined) StorePart<1>(c[0], bias);
  }

 private:
  static constexpr int kSteps = kHeadSize / 16;
  // Whether there are registers to have the remainder of the matrix before the rows come.
  static constexpr bool kRemainderAhead = kHeadSize <= 128;
  FQ_DEVICE static constexpr AttendQueryLayout Layout() { return {kHeadSize}; }
  FQ_DEVICE static constexpr TablesLayout Tables() { return {kHeadSize}; }

  FQ_DEVICE const float* Vector(int offset) const {
    return reinterpret_cast<const float*>(task_.record + offset) + 16 * share_;
  }
  // This lane's words of A fragments; those of the next step are 32 further on.
  FQ_DEVICE const uint4* MatrixWords(int offset) const {
    return reinterpret_cast<const uint4*>(task_.record + offset) + (threadIdx.x & 31);
  }
  FQ_DEVICE static void MultiplyStep(const uint4& matrix, const uint32_t (&b)[2], float (&c)[4]) {
    const uint32_t a[4] = {matrix.x, matrix.y, matrix.z, matrix.w};
    Multiply<false>(c, a, Half(b[0]), Half(b[1]));
  }
  FQ_DEVICE static uint32_t Half(uint32_t pair) {
    if constexpr (!kBf16) return pair;
    const float2 values = UnpackElements<kBf16>(pair);
    return PackPair<false>(values.x, values.y);
  }
  // Where this lane's two words of rows at `offset` lie.
  FQ_DEVICE uint32_t* Fragment(int offset) const {
    return reinterpret_cast<uint32_t*>(to_ + offset) + share_ / 2 * 128 + (threadIdx.x & 31) * 4 +
           share_ % 2 * 2;
  }

  // The rows as they are.
  FQ_DEVICE void StorePlain(const uint32_t (&own)[2]) {
    uint32_t* to = Fragment(Layout().Plain());
    to[0] = own[0];
    to[1] = own[1];
  }

  // This warp's share of q * mu, of rows 2t and 2t + 1.
  FQ_DEVICE float2 MeanBias(const uint32_t (&own)[2]) {
    float dot = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 pair = UnpackElements<kBf16>(own[i]);
      dot += (pair.x * mu_[i].x + pair.y * mu_[i].y) * scale_;
    }
    dot += __shfl_xor_sync(~0u, dot, 1);
    dot += __shfl_xor_sync(~0u, dot, 2);  // of row g
    return make_float2(__shfl_sync(~0u, dot, 8 * t_), __shfl_sync(~0u, dot, 8 * t_ + 4));
  }

  // `c` has rows 2t, 2t + 1 of components g, g + 8; transposed, a lane has two neighbouring
  // components of row g. Class 8 adds 1152 to each code of a score: `bias` takes that away.
  template <int kPart>
  FQ_DEVICE void StorePart(const float (&c)[4], float2& bias) {
    uint32_t* to = Fragment(Layout().Coded(kPart));
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float factor = scale_ * unit_[kPart][i];
      const float2 exact = make_float2(c[2 * i] * factor, c[2 * i + 1] * factor);
      const uint32_t pair = PackPair<false>(exact.x, exact.y);
      const uint32_t own = Transpose(pair);
      to[i] = own;
      float2 rounded = UnpackHalves(pair);
      if (kPart == 0 && share_ == 0) {
        const uint32_t rest = PackPair<false>(exact.x - rounded.x, exact.y - rounded.y);
        Fragment(Layout().First())[i] = own;
        Fragment(Layout().First())[2 + i] = Transpose(rest);
        const float2 more = UnpackHalves(rest);
        rounded.x += more.x;
        rounded.y += more.y;
      }
      sum.x -= 1152.0f * is_class8_[kPart][i] * rounded.x;
      sum.y -= 1152.0f * is_class8_[kPart][i] * rounded.y;
    }
#pragma unroll
    for (int step = 4; step < 32; step <<= 1) {
      sum.x += __shfl_xor_sync(~0u, sum.x, step);
      sum.y += __shfl_xor_sync(~0u, sum.y, step);
    }
    bias.x += sum.x;
    bias.y += sum.y;
    if (g_ == 0) {
      reinterpret_cast<float2*>(to_ + Layout().Bias(kPart + 1))[share_ * (kAttendRows / 2) + t_] =
          bias;
    }
  }

  const AttendTaskInfo& task_;
  const int share_;
  const float scale_;
  std::byte* const to_;
  uint4 matrix_[kSteps], remainder_[kRemainderAhead ? kSteps : 1];
  float2 mu_[2];
  float unit_[2][2], is_class8_[2][2];  // of base and refinement, components g and g + 8
  const int g_ = static_cast<int>(threadIdx.x & 31) / 4, t_ = static_cast<int>(threadIdx.x & 3);
};

// Tasks of a thread block: those of a head share its matrix in L1.
FQ_HD constexpr int QueryTasks(int head_size) { return 256 / head_size; }
inline constexpr int kQueryThreads = 512;

// Blocks of kQueryThreads threads, a warp for each 16 components of a task, that prepare all tasks.
FQ_HD constexpr int QueryBlocks(int head_size, int tasks) {
  return (tasks + QueryTasks(head_size) - 1) / QueryTasks(head_size);
}

// The work of such a block. Constants are fetched while the kernel before still runs; attention may
// start, and fill its tables, when that is done.
template <int kHeadSize, bool kBf16, typename Rows>
FQ_DEVICE void PrepareTasks(const QueryParams& params, const Rows& rows) {
  constexpr AttendQueryLayout kLayout{kHeadSize};
  constexpr int kShares = kHeadSize / 16;
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int task = static_cast<int>(blockIdx.x) * QueryTasks(kHeadSize) + warp / kShares;
  if (task >= params.task_count) return;
  QueryShare<kHeadSize, kBf16> share(params.tasks[task], warp % kShares, params.scale,
                                     params.queries + static_cast<size_t>(task) * kLayout.Bytes());
  share.LoadConstants();
  WaitForPrevious();
  LetNextStart();
  share.Prepare(rows);
}

// Grid: QueryBlocks.
template <int kHeadSize, bool kBf16>
__global__ void __launch_bounds__(kQueryThreads)
    PrepareQueries(const __grid_constant__ QueryParams params) {
  PrepareTasks<kHeadSize, kBf16>(params, PlainRows<kHeadSize>{params.q});
}

}  // namespace fq
