// The attention kernel: each warp works off its pieces, then the warps of a block that worked on
// the same task add up what they have. Device code, also compiled at run time with the profiles of
// a codec set (attend_compile.h).
#pragma once

#include "kernels/cuda/attend_coded.cuh"
#include "kernels/cuda/attend_plain.cuh"
#include "kernels/cuda/attend_refined.cuh"

namespace fq {

// Runs the profile that `piece.code` names.
template <int kHeadSize, int kCode>
FQ_DEVICE void AttendCoded(const AttendParams&, const AttendPiece&, Softmax&, Sums<kHeadSize>&) {}
template <int kHeadSize, int kCode, typename Profile, typename... Others>
FQ_DEVICE void AttendCoded(const AttendParams& params, const AttendPiece& piece, Softmax& softmax,
                           Sums<kHeadSize>& sums) {
  if (piece.code == kCode) {
    Profile::template Attend<kHeadSize>(params, piece, softmax, sums);
  } else {
    AttendCoded<kHeadSize, kCode + 1, Others...>(params, piece, softmax, sums);
  }
}

// To `values` f32[d / 16][32][4] and `stats` f32[8][2].
template <int kHeadSize>
FQ_DEVICE void StorePartial(Softmax& softmax, const Sums<kHeadSize>& sums, float4* values,
                            float4* stats) {
  const int lane = static_cast<int>(threadIdx.x & 31);
#pragma unroll
  for (int i = 0; i < kHeadSize / 16; ++i) {
    values[32 * i + lane] =
        make_float4(sums.tile[i][0], sums.tile[i][1], sums.tile[i][2], sums.tile[i][3]);
  }
  const float2 even = softmax.Stats(0), odd = softmax.Stats(1);
  if (lane < 4) stats[lane] = make_float4(even.x, even.y, odd.x, odd.y);
}

// Adds up runs of warps with the same slot, in the order of the warps: quad i of channels and rows.
template <int kHeadSize>
FQ_DEVICE void MergeQuad(const AttendParams& params, const std::byte* shared, int i) {
  constexpr PartialsLayout kLayout{kHeadSize};
  constexpr int kQuads = kHeadSize * 2, kWarps = AttendWarps(kHeadSize);
  const int* slots = reinterpret_cast<const int*>(shared + kLayout.Slot(0));
  const float4* values = reinterpret_cast<const float4*>(shared) + i;
  const float4* stats = reinterpret_cast<const float4*>(shared + kLayout.Stats(0)) + (i & 3);
  for (int first = 0, end; first < kWarps; first = end) {
    const int slot = slots[first];
    float2 top = make_float2(kNoMaximum, kNoMaximum), total = make_float2(0.0f, 0.0f);
    for (end = first; end < kWarps && slots[end] == slot; ++end) {
      top.x = fmaxf(top.x, stats[end * 4].x);
      top.y = fmaxf(top.y, stats[end * 4].z);
    }
    if (slot < 0) continue;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 4
    for (int warp = first; warp < end; ++warp) {
      const float4 stat = stats[warp * 4], part = values[warp * kQuads];
      const float x = Exp2(stat.x - top.x), y = Exp2(stat.z - top.y);
      total.x += x * stat.y;
      total.y += y * stat.w;
      sum.x += x * part.x;
      sum.y += y * part.y;
      sum.z += x * part.z;
      sum.w += y * part.w;
    }
    reinterpret_cast<float4*>(params.values)[static_cast<size_t>(slot) * kQuads + i] = sum;
    if (i < 4) {
      reinterpret_cast<float4*>(params.stats)[slot * 4 + i] =
          make_float4(top.x, total.x, top.y, total.y);
    }
  }
}

FQ_DEVICE AttendPiece LoadPiece(const AttendPiece* from) {
  AttendPiece piece;
  const int4* words = reinterpret_cast<const int4*>(from);
  int4* to = reinterpret_cast<int4*>(&piece);
#pragma unroll
  for (int i = 0; i < 3; ++i) to[i] = __ldg(words + i);
  return piece;
}

// Brings the first pages of a piece into L2 while the tables are set up.
FQ_DEVICE void PrefetchFirst(const AttendParams& params, const AttendPiece& piece, int lane) {
  constexpr int kPages = 2;
  const int page = lane & 15;
  if (page >= min(kPages, piece.page_count)) return;
  if (lane < 16) {
    PrefetchToL2(
        PageAt(params.pool + piece.offset, PageEntry(params.pages + piece.table_begin, page)),
        piece.bytes);
  } else if (piece.refinement_bytes > 0) {
    PrefetchToL2(PageAt(params.pool + piece.refinement_offset,
                        PageEntry(params.refinements + piece.table_begin, page)),
                 piece.refinement_bytes);
  }
}

// The merge will need the output matrix of the head; a block's share of bringing it into L2.
template <int kHeadSize>
FQ_DEVICE void PrefetchOutput(const std::byte* record) {
  constexpr TablesLayout kLayout{kHeadSize};
  constexpr int kShare = 1024;
  const int at = static_cast<int>(threadIdx.x) * kShare;
  if (at < kLayout.Matrix() / 2) PrefetchToL2(record + kLayout.OutputFragments() + at, kShare);
}

// One piece from its query to its partial sums.
template <int kHeadSize, bool kBf16, typename... Profiles>
FQ_DEVICE void AttendOnePiece(const AttendParams& params, const AttendPiece& piece,
                              Softmax& softmax, Sums<kHeadSize>& sums) {
  if (piece.code == kAttendExact) {
    AttendExact<kHeadSize, kBf16>(params, piece, softmax, sums);
  } else if (piece.code == kAttendSink) {
    AttendSink<kHeadSize, kBf16>(params, piece, softmax, sums);
  } else {
    AttendCoded<kHeadSize, kAttendFirstProfile, Profiles...>(params, piece, softmax, sums);
  }
}

// The kernel's body: AttendSharedBytes bytes of dynamic shared memory, AttendWarps warps.
template <int kHeadSize, bool kBf16, typename... Profiles>
FQ_DEVICE void AttendBlock(const AttendParams& params) {
  constexpr int kWarps = AttendWarps(kHeadSize);
  FQ_ATTEND_SHARED(shared);
  const int lane_index = static_cast<int>(threadIdx.x & 31),
            warp = static_cast<int>(threadIdx.x / 32);
  if (!SharedStartsAt(shared, kSharedBase)) __trap();
  int at = static_cast<int>(blockIdx.x) * kWarps + warp;
  AttendPiece piece = LoadPiece(params.pieces + at);
  const std::byte* record = params.records[blockIdx.x];
  TableCopy<kWarps * 32> tables;
  if (record != nullptr) tables.Load(record);
  PrefetchFirst(params, piece, lane_index);
  if (record != nullptr) {
    PrefetchOutput<kHeadSize>(record);
    tables.Store(shared);
    if constexpr (kRefinedTables) StoreRatios<kHeadSize>(record, shared);
  }
  __syncthreads();
  LetNextStart();
  WaitForPrevious();
  Softmax softmax;
  Sums<kHeadSize> sums;
  constexpr int kQuads = kHeadSize * 2;
  while (piece.page_count > 0) {
    AttendOnePiece<kHeadSize, kBf16, Profiles...>(params, piece, softmax, sums);
    piece.slot = static_cast<int>(LoadNow(&params.pieces[at].slot));  // read again, not kept
    at = static_cast<int>(LoadNow(&params.pieces[at].next));
    if (at < 0) break;
    StorePartial(
        softmax, sums,
        reinterpret_cast<float4*>(params.values) + static_cast<size_t>(piece.slot) * kQuads,
        reinterpret_cast<float4*>(params.stats) + piece.slot * 4);
    piece = LoadPiece(params.pieces + at);
    softmax = Softmax();
    sums = Sums<kHeadSize>();
  }
  __syncthreads();  // the tables are no longer needed
  constexpr PartialsLayout kLayout{kHeadSize};
  if (lane_index == 0) *reinterpret_cast<int*>(shared + kLayout.Slot(warp)) = piece.slot;
  StorePartial(softmax, sums, reinterpret_cast<float4*>(shared + kLayout.Values(warp)),
               reinterpret_cast<float4*>(shared + kLayout.Stats(warp)));
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kQuads; i += kWarps * 32) {
    MergeQuad<kHeadSize>(params, shared, i);
  }
}

// A profile of base pages alone.
template <typename KClasses, typename VClasses>
struct BaseProfile {
  using K = KClasses;
  using V = VClasses;
  template <int kHeadSize>
  FQ_DEVICE static void Attend(const AttendParams& params, const AttendPiece& piece,
                               Softmax& softmax, Sums<kHeadSize>& sums) {
    AttendBase<BaseProfile, kHeadSize>(params, piece, softmax, sums);
  }
};

// A profile of pages with refinements.
template <typename KClasses, typename VClasses, typename KRefinement, typename VRefinement>
struct RefinedProfile {
  using K = KClasses;
  using V = VClasses;
  using RefinedK = KRefinement;
  using RefinedV = VRefinement;
  template <int kHeadSize>
  FQ_DEVICE static void Attend(const AttendParams& params, const AttendPiece& piece,
                               Softmax& softmax, Sums<kHeadSize>& sums) {
    AttendRefined<RefinedProfile, kHeadSize>(params, piece, softmax, sums);
  }
};

}  // namespace fq
