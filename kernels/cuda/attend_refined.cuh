// Attention of one warp over consecutive pages of base and refinement. Device code, also compiled
// at run time.
#pragma once

#include "kernels/cuda/attend_coded.cuh"

namespace fq {

// scores += query * refinement of a page's keys. The query rows come from L1: registers are full.
template <typename Side>
FQ_DEVICE void AddRefinedScores(const Side& keys, const std::byte* rows, const LaneAddress& lane,
                                float (&scores)[kTiles][4]) {
  constexpr int kHeadSize = 8 * Side::kGroups;
  const int lane_index = static_cast<int>(threadIdx.x & 31);
  const std::byte* row = rows + (lane_index >> 2) * kHeadSize * 2 + (lane_index & 3) * 4;
  StaticFor<0, kHeadSize / 16>([&](auto step) {
    constexpr int s = decltype(step)::value;
    if constexpr (Side::HasStep(s)) {
      const uint32_t b0 = LoadNow(row + 32 * s), b1 = LoadNow(row + 32 * s + 16);
      uint32_t a[kTiles][4];
      keys.template Decode<s>(lane, a);
#pragma unroll
      for (int j = 0; j < kTiles; ++j) Multiply<false>(scores[j], a[j], b0, b1);
    }
  });
}

// The pages of a piece. Profile::K, ::V, ::RefinedK and ::RefinedV are Classes. Twice the sums
// leave no registers for the codes of a page to come: those are brought into L2, two pages ahead.
template <typename Profile, int kHeadSize>
FQ_DEVICE void AttendRefined(const AttendParams& params, const AttendPiece& piece,
                             const std::byte* queries, const LaneAddress& lane, Softmax& softmax,
                             Sums<kHeadSize>& sums) {
  const int lane_index = static_cast<int>(threadIdx.x & 31);
  using K = typename Profile::K;
  using V = typename Profile::V;
  using RefinedK = typename Profile::RefinedK;
  using RefinedV = typename Profile::RefinedV;
  constexpr int kGroups = kHeadSize / 8;
  constexpr int kBytes = K::Offset(kGroups) + V::Offset(kGroups);
  constexpr int kRefinedBytes = RefinedK::Offset(kGroups) + RefinedV::Offset(kGroups);
  constexpr AttendQueryLayout kLayout{kHeadSize};
  const uint32_t* table = params.pages + piece.table_begin;
  const uint32_t* refined_table = params.refinements + piece.table_begin;
  const std::byte* origin = params.pool + piece.offset;
  const std::byte* refined_origin = params.pool + piece.refinement_offset;
  const int last = piece.page_count - 1;
  QueryRegisters<kHeadSize> q;
  q.Load(queries + kLayout.Coded(0), lane_index);
  const float2 bias =
      *reinterpret_cast<const float2*>(queries + kLayout.Bias(2) + 8 * (lane_index & 3));
  Sums<kHeadSize> refined_sums;
#pragma unroll 1
  for (int i = 0; i <= last; ++i) {
    const std::byte* page = PageAt(origin, PageEntry(table, i));
    const std::byte* refinement = PageAt(refined_origin, PageEntry(refined_table, i));
    RawSide<K, 0, false, kHeadSize, 0> keys;
    RawSide<RefinedK, 0, true, kHeadSize, 0> refined_keys;
    keys.LoadAll(page, lane_index, true);
    refined_keys.LoadAll(refinement, lane_index, true);
    if (i + 2 <= last) {
      PrefetchToL2ByWarp<kBytes>(PageAt(origin, PageEntry(table, i + 2)), lane_index);
      PrefetchToL2ByWarp<kRefinedBytes>(PageAt(refined_origin, PageEntry(refined_table, i + 2)),
                                        lane_index);
    }
    RawSide<V, 1, false, kHeadSize, K::Offset(kGroups)> values;
    values.LoadAll(page, LaneAfter(lane_index, refined_keys.words[0], params.zero), true);
    float scores[kTiles][4];
    ScorePage(keys, q, lane, scores, softmax.start0(bias.x), softmax.start1(bias.y));
    AddRefinedScores(refined_keys, queries + kLayout.Coded(1), lane, scores);
    const int begin = piece.token_begin - 64 * i, end = piece.token_end - 64 * i;
    if (begin > 0 || end < 64) MaskKeys(scores, begin, end);
    softmax.Weigh(scores, [&](float c0, float c1) {
      sums.Scale(c0, c1);
      refined_sums.Scale(c0, c1);
    });
    uint32_t weights[kTiles][2];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) PackKeyWeights(scores, j, weights[j]);
    RawSide<RefinedV, 1, true, kHeadSize, RefinedK::Offset(kGroups)> refined_values;
    refined_values.LoadAll(refinement, LaneAfter(lane_index, values.words[0], params.zero), true);
    AddValues(values, weights, lane, sums);
    AddValues(refined_values, weights, lane, refined_sums);
  }
  ApplyUnits(params.records[blockIdx.x], 0, sums);
  ApplyUnits(params.records[blockIdx.x], 1, refined_sums);
  sums.Add(refined_sums);
}

}  // namespace fq
