// The kernel after attention: adds up the partial results of a task in the order of their slots,
// takes coded sums back out of the coded domain, and writes output and log-sum-exp.
#pragma once

#include "kernels/cuda/attend_params.h"
#include "kernels/cuda/attend_ptx.cuh"
#include "kernels/cuda/tables_layout.h"

namespace fq {

struct MergeParams {
  const AttendTaskInfo* tasks;  // [blocks of the grid]
  const float* values;          // AttendParams
  const float* stats;
  void* out;   // [rows][d] FP16 or BF16
  float* lse;  // [rows] natural logarithm; minus infinity for a row without tokens
};

// Where tasks are few they have many slots, and teams of 2 d threads share those out: few for each,
// loaded at once, because this kernel is one chain of latencies.
FQ_HD constexpr int MergeThreads(int head_size, int teams) { return 2 * head_size * teams; }

// Sums of weighted values of some slots for rows 2t and 2t + 1, relative to `top`.
struct SlotSums {
  float4 coded, plain;
  float2 coded_weight, plain_weight, top;
};

// Brings sums to a new maximum.
FQ_DEVICE void Rescale(SlotSums& sums, float2 top) {
  const float x = Exp2(sums.top.x - top.x), y = Exp2(sums.top.y - top.y);
  sums.coded = make_float4(sums.coded.x * x, sums.coded.y * y, sums.coded.z * x, sums.coded.w * y);
  sums.plain = make_float4(sums.plain.x * x, sums.plain.y * y, sums.plain.z * x, sums.plain.w * y);
  sums.coded_weight = make_float2(sums.coded_weight.x * x, sums.coded_weight.y * y);
  sums.plain_weight = make_float2(sums.plain_weight.x * x, sums.plain_weight.y * y);
  sums.top = top;
}

FQ_DEVICE void AddScaled(const float4& value, const float4& stat, float2 top, float4& sum,
                         float2& weight) {
  const float x = Exp2(stat.x - top.x), y = Exp2(stat.z - top.y);
  sum.x += x * value.x;
  sum.y += y * value.y;
  sum.z += x * value.z;
  sum.w += y * value.w;
  weight.x += x * stat.y;
  weight.y += y * stat.w;
}

// Slots begin .. end - 1 of a task, a batch at a time. `i` = quad of channels and rows, 0 .. 2 d
// - 1.
template <int kHeadSize, int kTeams>
FQ_DEVICE SlotSums AddSlots(const MergeParams& params, const AttendTaskInfo& task, int begin,
                            int end, int i) {
  constexpr int kQuads = kHeadSize * 2, kBatch = kTeams > 1 ? 8 : 4;
  const float4* stats =
      reinterpret_cast<const float4*>(params.stats) + task.slot_begin * (kAttendRows / 2) + (i & 3);
  const float4* values = reinterpret_cast<const float4*>(params.values) +
                         static_cast<size_t>(task.slot_begin) * kQuads + i;
  SlotSums sums = {};
  sums.top = make_float2(kNoMaximum, kNoMaximum);
#pragma unroll 1
  for (int first = begin; first < end; first += kBatch) {
    float4 stat[kBatch], value[kBatch];
    float2 top = sums.top;
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int slot = first + k;
      const bool exists = slot < end;
      stat[k] = exists ? __ldcg(stats + 4 * slot) : make_float4(kNoMaximum, 0, kNoMaximum, 0);
      value[k] = exists ? __ldcg(values + static_cast<size_t>(slot) * kQuads) : float4{};
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      top = make_float2(fmaxf(top.x, stat[k].x), fmaxf(top.y, stat[k].z));
    }
    Rescale(sums, top);
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (first + k >= end) break;
      if (first + k < task.coded_count) {
        AddScaled(value[k], stat[k], top, sums.coded, sums.coded_weight);
      } else {
        AddScaled(value[k], stat[k], top, sums.plain, sums.plain_weight);
      }
    }
  }
  return sums;
}

// Adds the sums of all teams in their order; every thread of team 0 gets them.
template <int kTeams, int kQuads>
FQ_DEVICE void JoinTeams(SlotSums& sums) {
  if constexpr (kTeams == 1) return;
  __shared__ SlotSums others[kTeams > 1 ? kTeams - 1 : 1][kQuads];
  const int i = static_cast<int>(threadIdx.x) % kQuads,
            team = static_cast<int>(threadIdx.x) / kQuads;
  if (team > 0) others[team - 1][i] = sums;
  __syncthreads();
  if (team > 0) return;
  float2 top = sums.top;
#pragma unroll
  for (int k = 0; k < kTeams - 1; ++k) {
    top = make_float2(fmaxf(top.x, others[k][i].top.x), fmaxf(top.y, others[k][i].top.y));
  }
  Rescale(sums, top);
#pragma unroll
  for (int k = 0; k < kTeams - 1; ++k) {
    SlotSums other = others[k][i];
    Rescale(other, top);
    sums.coded = make_float4(sums.coded.x + other.coded.x, sums.coded.y + other.coded.y,
                             sums.coded.z + other.coded.z, sums.coded.w + other.coded.w);
    sums.plain = make_float4(sums.plain.x + other.plain.x, sums.plain.y + other.plain.y,
                             sums.plain.z + other.plain.z, sums.plain.w + other.plain.w);
    sums.coded_weight.x += other.coded_weight.x;
    sums.coded_weight.y += other.coded_weight.y;
    sums.plain_weight.x += other.plain_weight.x;
    sums.plain_weight.y += other.plain_weight.y;
  }
}

// Normalised sums of coded pages as FP16 rows in shared memory: the B operand of the transform.
template <int kHeadSize>
struct CodedRows {
  static constexpr int kStride = kHeadSize + 8;  // rows of a quarter warp in different banks
  uint16_t element[kAttendRows * kStride];

  FQ_DEVICE void Store(const float4& sums, float2 inverse, int channel, int t) {
    const uint32_t low = PackPair<false>(sums.x * inverse.x, sums.y * inverse.y);
    const uint32_t high = PackPair<false>(sums.z * inverse.x, sums.w * inverse.y);
    uint16_t* even = element + 2 * t * kStride + channel;
    even[0] = static_cast<uint16_t>(low);
    even[8] = static_cast<uint16_t>(high);
    even[kStride] = static_cast<uint16_t>(low >> 16);
    even[kStride + 8] = static_cast<uint16_t>(high >> 16);
  }

  // x += A_V^-1 rows for the 16 channels of this warp.
  FQ_DEVICE void Transform(const uint4 (&matrix)[kHeadSize / 16], int g, int t,
                           float (&x)[4]) const {
#pragma unroll
    for (int s = 0; s < kHeadSize / 16; ++s) {
      const uint32_t a[4] = {matrix[s].x, matrix[s].y, matrix[s].z, matrix[s].w};
      const uint32_t* b = reinterpret_cast<const uint32_t*>(element + g * kStride + 16 * s + 2 * t);
      Multiply<false>(x, a, b[0], b[4]);
    }
  }
};

// Channels `channel` and `channel` + 8 of rows 2t and 2t + 1.
template <int kHeadSize, bool kBf16>
FQ_DEVICE void StoreRows(const MergeParams& params, const AttendTaskInfo& task, const float (&x)[4],
                         int channel, int t) {
  uint16_t* out = static_cast<uint16_t*>(params.out);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = task.rows[2 * t + i];
    if (row < 0) continue;
    const uint32_t pair = PackPair<kBf16>(x[i], x[2 + i]);
    uint16_t* to = out + static_cast<int64_t>(row) * kHeadSize + channel;
    to[0] = static_cast<uint16_t>(pair);
    to[8] = static_cast<uint16_t>(pair >> 16);
  }
}

FQ_DEVICE void StoreLogSumExp(const MergeParams& params, const AttendTaskInfo& task,
                              const SlotSums& sums, int t) {
  constexpr float kLn2 = 0.693147180559945f;
  const float top[2] = {sums.top.x, sums.top.y};
  const float weight[2] = {sums.coded_weight.x + sums.plain_weight.x,
                           sums.coded_weight.y + sums.plain_weight.y};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = task.rows[2 * t + i];
    if (row < 0) continue;
    params.lse[row] = weight[i] == 0.0f ? MinusInfinity() : (top[i] + log2f(weight[i])) * kLn2;
  }
}

// Grid: tasks. Block: MergeThreads. The matrix is fetched while attention still runs: it is the
// same for every step.
template <int kHeadSize, bool kBf16, int kTeams>
__global__ void __launch_bounds__(MergeThreads(kHeadSize, kTeams))
    MergeTasks(const __grid_constant__ MergeParams params) {
  constexpr TablesLayout kTables{kHeadSize};
  constexpr int kQuads = kHeadSize * 2;
  __shared__ CodedRows<kHeadSize> rows;
  const AttendTaskInfo& task = params.tasks[blockIdx.x];
  const int i = static_cast<int>(threadIdx.x) % kQuads,
            team = static_cast<int>(threadIdx.x) / kQuads;
  const int lane = i & 31, g = lane / 4, t = lane & 3, channel = i / 32 * 16 + g;
  const bool transforms = team == 0 && task.coded_count > 0;
  uint4 matrix[kHeadSize / 16] = {};
  float mu[2] = {0.0f, 0.0f};
  if (transforms) {
    const uint4* fragments =
        reinterpret_cast<const uint4*>(task.record + kTables.OutputFragments()) +
        i / 32 * (kHeadSize / 16) * 32 + lane;
#pragma unroll
    for (int s = 0; s < kHeadSize / 16; ++s) matrix[s] = fragments[32 * s];
    const float* means = reinterpret_cast<const float*>(task.record + kTables.Mu(1)) + channel;
    mu[0] = means[0];
    mu[1] = means[8];
  }
  const int count = task.coded_count + task.plain_count;
  WaitForPrevious();
  SlotSums sums = AddSlots<kHeadSize, kTeams>(params, task, count * team / kTeams,
                                              count * (team + 1) / kTeams, i);
  JoinTeams<kTeams, kQuads>(sums);
  const float weight[2] = {sums.coded_weight.x + sums.plain_weight.x,
                           sums.coded_weight.y + sums.plain_weight.y};
  const float2 inverse =
      count == 0 ? make_float2(0.0f, 0.0f) : make_float2(1.0f / weight[0], 1.0f / weight[1]);
  if (transforms) rows.Store(sums.coded, inverse, channel, t);
  __syncthreads();
  if (team > 0) return;
  float x[4] = {sums.plain.x * inverse.x, sums.plain.y * inverse.y, sums.plain.z * inverse.x,
                sums.plain.w * inverse.y};
  if (transforms) {
    const float share[2] = {sums.coded_weight.x * inverse.x, sums.coded_weight.y * inverse.y};
#pragma unroll
    for (int e = 0; e < 4; ++e) x[e] += mu[e >> 1] * share[e & 1];
    rows.Transform(matrix, g, t, x);
  }
  StoreRows<kHeadSize, kBf16>(params, task, x, channel, t);
  if (i < 4) StoreLogSumExp(params, task, sums, t);
}

}  // namespace fq
