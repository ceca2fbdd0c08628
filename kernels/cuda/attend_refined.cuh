// Attention of one warp over consecutive pages of base and refinement. Device code, also compiled
// at run time.
#pragma once

#include "kernels/cuda/attend_coded.cuh"

namespace fq {

// Scores of the 64 tokens of a page: of their base, from `start`, or (kAdded) what the refinement
// adds. `rows` gives the query rows of two MMA steps, `remainder` of the base what only
// AttendQueryLayout::First has.
template <bool kAdded, typename Side, typename Rows>
FQ_DEVICE void ScorePart(const Side& keys, const Rows& rows, uint2 remainder, LaneColumns lane,
                         float4 start, float (&scores)[kTiles][4]) {
  constexpr int kFirst = kAdded ? -1 : Side::FirstStep();
  if constexpr (!kAdded && kFirst < 0) FillScores(start, scores);
  StaticFor<0, Side::kGroups / 4>([&](auto pair) {
    constexpr int p = decltype(pair)::value;
    if constexpr (Side::HasStep(2 * p) || Side::HasStep(2 * p + 1)) {
      const uint4 b = rows(pair);
      StaticFor<2 * p, 2 * p + 2>([&](auto step) {
        constexpr int s = decltype(step)::value;
        if constexpr (Side::HasStep(s)) {
          uint32_t a[kTiles][4];
          keys.template Decode<s>(lane, a);
          MultiplyTiles<s == kFirst>(a, s % 2 ? b.z : b.x, s % 2 ? b.w : b.y, start, scores);
          if constexpr (s == 0 && !kAdded) {
            MultiplyTiles<false>(a, remainder.x, remainder.y, start, scores);
          }
        }
      });
    }
  });
}

// sums += refinements of a page * weights, in units of the base: the ratios of a lane's channels
// are in shared memory (StoreRatios).
template <typename Side, int kHeadSize>
FQ_DEVICE void AddRefinedValues(const Side& values, const uint32_t (&weights)[kTiles][2],
                                LaneColumns lane, Sums<kHeadSize>& sums) {
  StaticFor<0, kHeadSize / 16>([&](auto step) {
    constexpr int s = decltype(step)::value;
    if constexpr (Side::HasStep(s)) {
      uint32_t a[kTiles][4];
      values.template Decode<s>(lane, a);
      float part[4];
      MultiplyFrom(part, make_float4(0.0f, 0.0f, 0.0f, 0.0f), a[0], weights[0][0], weights[0][1]);
#pragma unroll
      for (int j = 1; j < kTiles; ++j) Multiply<false>(part, a[j], weights[j][0], weights[j][1]);
      const uint2 ratio =
          LoadShared2<kSharedBase + kTables.Ratios() + 64 * s>((threadIdx.x & 28) * 2);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sums.tile[s][e] =
            fmaf(part[e], __uint_as_float(e < 2 ? ratio.x : ratio.y), sums.tile[s][e]);
      }
    }
  });
}

// What a refinement of V is worth in units of the base: f32[d / 16][8][2], of channels g, g + 8.
template <int kHeadSize>
FQ_DEVICE void StoreRatios(const std::byte* record, std::byte* shared) {
  constexpr TablesLayout kLayout{kHeadSize};
  const float* base = reinterpret_cast<const float*>(record + kLayout.Unit(1, 0));
  const float* refined = reinterpret_cast<const float*>(record + kLayout.Unit(1, 1));
  float* ratios = reinterpret_cast<float*>(shared + kTables.Ratios());
  const int c = static_cast<int>(threadIdx.x);
  if (c < kHeadSize) ratios[c / 16 * 16 + c % 8 * 2 + c / 8 % 2] = refined[c] / base[c];
}

// The pages of a piece. Profile::K, ::V, ::RefinedK and ::RefinedV are Classes. The keys' base is
// loaded half a page ahead of its use, while the values of the page before are added up; the rest
// when the page begins, in the order of its use: registers and L1 have no room for more. What can
// be read or worked out again is not kept.
template <typename Profile, int kHeadSize>
FQ_DEVICE void AttendRefined(const AttendParams& params, const AttendPiece& piece, Softmax& softmax,
                             Sums<kHeadSize>& sums) {
  const LaneColumns lane = ColumnsOfLane();
  const int lane_index = static_cast<int>(threadIdx.x & 31);
  using K = typename Profile::K;
  using RefinedK = typename Profile::RefinedK;
  constexpr int kGroups = kHeadSize / 8;
  constexpr AttendQueryLayout kLayout{kHeadSize};
  RawSide<K, 0, false, kHeadSize, 0> keys;
  RawSide<RefinedK, 0, true, kHeadSize, 0> refined_keys;
  RawSide<typename Profile::V, 1, false, kHeadSize, K::Offset(kGroups)> values;
  RawSide<typename Profile::RefinedV, 1, true, kHeadSize, RefinedK::Offset(kGroups)> refined_values;
  const auto page = [&](uint32_t entry) { return PageAt(params.pool, entry) + piece.offset; };
  const auto refinement = [&](uint32_t entry) {
    return PageAt(params.pool, entry) + piece.refinement_offset;
  };
  // Rows for the base stay in registers where there is room. At head size 128 there is none for the
  // first 16 components: those come from L1, together with their remainder.
  constexpr bool kKept =
      kHeadSize < 128 ||
      (kHeadSize == 128 && K::Word(kGroups) + Profile::V::Word(kGroups) <= 40 &&
       RefinedK::Word(kGroups) <= kGroups && Profile::RefinedV::Word(kGroups) <= kGroups);
  QueryRegisters<kKept ? kHeadSize : 16> kept;
  if constexpr (kKept) {
    kept.Load(QueriesOf<kHeadSize>(params, piece) + kLayout.Coded(0), lane_index);
  }
  const uint32_t query = static_cast<uint32_t>(piece.task) * kLayout.Bytes() + 16 * lane_index;
  const auto read_first = [&] { return LoadNow4(params.queries + query + kLayout.First()); };
  const uint4 kept_first = kHeadSize < 128 ? read_first() : make_uint4(0, 0, 0, 0);
  int at = piece.table_begin;  // in the page tables
  uint32_t entry = PageEntry(params.pages, at), refined_entry = PageEntry(params.refinements, at);
  keys.LoadAll(page(entry), lane_index, true);
  softmax.Shift(LoadBias<kHeadSize>(QueriesOf<kHeadSize>(params, piece), 2), -1.0f);
  // First token of the page that counts, and 64 times the one past the last.
  uint32_t span = piece.token_begin + 64 * piece.token_end;
  bool more;
  do {
    more = span >= 64 * 65;
    const int ready = LaneAfter(lane_index, keys.words[0], params.zero);
    refined_keys.LoadAll(refinement(refined_entry), ready, true);
    values.LoadAll(page(entry), ready, true);
    float scores[kTiles][4];
    const float4 start = StartOf(softmax, params.zero);
    const uint4 first = kHeadSize < 128 ? kept_first : read_first();
    const auto read = [&](int part, int pair) {
      return LoadNow4(params.queries + query + kLayout.Coded(part) + 512 * pair);
    };
    ScorePart<false>(
        keys,
        [&](auto pair) {
          constexpr int p = decltype(pair)::value;
          if constexpr (kKept) {
            return make_uint4(p == 0 ? first.x : kept.b[2 * p][0],
                              p == 0 ? first.y : kept.b[2 * p][1], kept.b[2 * p + 1][0],
                              kept.b[2 * p + 1][1]);
          } else {
            return read(0, p);
          }
        },
        make_uint2(first.z, first.w), lane, start, scores);
    const uint32_t refined_now = refined_entry;
    at += more;
    entry = PageEntry(params.pages, at);
    refined_entry = PageEntry(params.refinements, at);
    refined_values.LoadAll(refinement(refined_now),
                           LaneAfter(lane_index, refined_keys.words[0], params.zero), true);
    ScorePart<true>(
        refined_keys, [&](auto pair) { return read(1, decltype(pair)::value); }, make_uint2(0, 0),
        lane, start, scores);
    if (((span - 64 * 64) & kNotWholePage) != 0) {
      MaskKeys(scores, static_cast<int>(span % 64), static_cast<int>(span / 64));
    }
    softmax.Weigh(scores, [&](float c0, float c1) { sums.Scale(c0, c1); });
    uint32_t weights[kTiles][2];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) PackKeyWeights(scores, j, weights[j]);
    keys.LoadAll(page(entry), LaneAfter(lane_index, values.words[0], params.zero), more);
    AddValues(values, weights, lane, sums);
    AddRefinedValues(refined_values, weights, lane, sums);
    span = span / 64 * 64 - 64 * 64;
  } while (more);
  softmax.Shift(LoadBias<kHeadSize>(QueriesOf<kHeadSize>(params, piece), 2), 1.0f);
  ApplyUnits(params.records[blockIdx.x], 0, sums);
}

}  // namespace fq
