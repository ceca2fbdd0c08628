// The two matrix products of the codec, per SIMD target: lanes are tokens, so that every output is
// one fused multiply-add chain in the same order as in scalar code. Included by primitives_simd.cc
// only.
#if defined(FQ_KERNELS_CPU_MATRIX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FQ_KERNELS_CPU_MATRIX_INL_H_
#undef FQ_KERNELS_CPU_MATRIX_INL_H_
#else
#define FQ_KERNELS_CPU_MATRIX_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/codec/page_layout.h"
#include "kernels/cpu/primitives.h"
#include "kernels/cpu/rows-inl.h"

#if HWY_NATIVE_FMA
HWY_BEFORE_NAMESPACE();
namespace fq {
namespace HWY_NAMESPACE {

// Outputs per register block: with two vectors of tokens each, accumulators fill half of the
// registers.
constexpr int kOutputs = HWY_MAX_BYTES >= 64 ? 8 : 4;
static_assert(kGroupChannels % kOutputs == 0, "a block lies in one group");

// A run of components that take part in a product, [begin, end).
struct ComponentRun {
  int begin, end;
};

// Runs of coded groups, so that the inner loop has no test. Returns how many.
inline int ComponentRuns(GroupMask groups, int head_size, ComponentRun* runs) {
  int count = 0;
  for (int group = 0; group < head_size / kGroupChannels; ++group) {
    if (!((groups >> group) & 1u)) continue;
    const int begin = group * kGroupChannels;
    if (count > 0 && runs[count - 1].end == begin) {
      runs[count - 1].end += kGroupChannels;
    } else {
      runs[count++] = {begin, begin + kGroupChannels};
    }
  }
  return count;
}

// out[i][t] = start[i] + sum over k in the runs of a[i][k] in[k][t], for kOutputs rows of `a` and
// 64 tokens.
HWY_INLINE void MultiplyRows(const float* a, int head_size, const ComponentRun* runs, int run_count,
                             const float* start, const float* in, float* out) {
  const FloatTag d;
  constexpr int kVectors = 2;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int t = 0; t < kPageTokens; t += kVectors * lanes) {
    FloatVec sums[kOutputs][kVectors];
    HWY_UNROLL(8)
    for (int i = 0; i < kOutputs; ++i) sums[i][0] = sums[i][1] = hn::Set(d, start[i]);
    for (int run = 0; run < run_count; ++run) {
      for (int k = runs[run].begin; k < runs[run].end; ++k) {
        const auto in0 = hn::Load(d, in + k * kPageTokens + t);
        const auto in1 = hn::Load(d, in + k * kPageTokens + t + lanes);
        HWY_UNROLL(8)
        for (int i = 0; i < kOutputs; ++i) {
          const auto factor = hn::Set(d, a[i * head_size + k]);
          sums[i][0] = hn::MulAdd(factor, in0, sums[i][0]);
          sums[i][1] = hn::MulAdd(factor, in1, sums[i][1]);
        }
      }
    }
    HWY_UNROLL(8)
    for (int i = 0; i < kOutputs; ++i) {
      hn::Store(sums[i][0], d, out + i * kPageTokens + t);
      hn::Store(sums[i][1], d, out + i * kPageTokens + t + lanes);
    }
  }
}

void Transform(const float* a, int head_size, GroupMask groups, const float* x, float* u) {
  static constexpr float kZeros[kOutputs] = {};
  const ComponentRun all{0, head_size};
  for (int i = 0; i < head_size; i += kOutputs) {
    if (!((groups >> (i / kGroupChannels)) & 1u)) continue;
    MultiplyRows(a + i * head_size, head_size, &all, 1, kZeros, x, u + i * kPageTokens);
  }
}

void InverseRows(const float* a_inv, const float* mu, GroupMask groups, const float* v,
                 const RowRange& range, const TargetRows& rows) {
  alignas(64) float x[kMaxHeadSize * kPageTokens];
  ComponentRun runs[kMaxGroups];
  const int run_count = ComponentRuns(groups, range.head_size, runs);
  for (int i = 0; i < range.head_size; i += kOutputs) {
    MultiplyRows(a_inv + i * range.head_size, range.head_size, runs, run_count, mu + i, v,
                 x + i * kPageTokens);
  }
  StoreRows(x, range, rows);
}

void Score(const float* q, int head_size, const float* v, float* scores) {
  const FloatTag d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int t = 0; t < kPageTokens; t += 2 * lanes) {
    auto sum0 = hn::Zero(d), sum1 = hn::Zero(d);
    for (int c = 0; c < head_size; ++c) {
      const auto factor = hn::Set(d, q[c]);
      sum0 = hn::MulAdd(factor, hn::Load(d, v + c * kPageTokens + t), sum0);
      sum1 = hn::MulAdd(factor, hn::Load(d, v + c * kPageTokens + t + lanes), sum1);
    }
    hn::Store(sum0, d, scores + t);
    hn::Store(sum1, d, scores + t + lanes);
  }
}

void Accumulate(const float* weights, int head_size, const float* v, float decay, float* out) {
  const FloatTag d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int c = 0; c < head_size; ++c) {
    auto sum = hn::Zero(d);
    for (int t = 0; t < kPageTokens; t += lanes) {
      sum = hn::MulAdd(hn::Load(d, weights + t), hn::Load(d, v + c * kPageTokens + t), sum);
    }
    out[c] = out[c] * decay + hn::GetLane(hn::SumOfLanes(d, sum));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fq
HWY_AFTER_NAMESPACE();
#endif  // HWY_NATIVE_FMA

#endif  // FQ_KERNELS_CPU_MATRIX_INL_H_
