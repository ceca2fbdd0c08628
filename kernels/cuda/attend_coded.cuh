// Attention of one warp over consecutive encoded pages whose classes are known at compile time.
// Device code, also compiled at run time.
#pragma once

#include "kernels/cuda/attend_groups.cuh"
#include "kernels/cuda/attend_softmax.cuh"

namespace fq {

// Classes of the groups of one side and part: four bits each, the first 16 groups in kLow.
template <uint64_t kLow, uint64_t kHigh>
struct Classes {
  FQ_HD static constexpr int At(int group) {
    return static_cast<int>((group < 16 ? kLow >> (4 * group) : kHigh >> (4 * (group - 16))) & 15);
  }
  // Bytes before a group.
  FQ_HD static constexpr int Offset(int group) {
    int sum = 0;
    for (int i = 0; i < group; ++i) sum += 64 * At(i);
    return sum;
  }
  // Words a lane keeps of the groups before one.
  FQ_HD static constexpr int Word(int group) {
    int sum = 0;
    for (int i = 0; i < group; ++i) sum += RawWords(At(i));
    return sum;
  }
};

// One side of a page whose codes are in registers. kPageOffset = bytes before the side's codes.
template <typename Codes, int kSide, bool kRefinement, int kHeadSize, int kPageOffset>
struct RawSide {
  static constexpr int kGroups = kHeadSize / 8;
  uint32_t words[Codes::Word(kGroups) + 1];

  FQ_DEVICE RawSide() {
    for (uint32_t& word : words) word = 0;
  }

  template <int kGroup>
  FQ_DEVICE void LoadOne(const std::byte* page, int lane, bool wanted) {
    LoadGroup<Codes::At(kGroup), kPageOffset + Codes::Offset(kGroup)>(words + Codes::Word(kGroup),
                                                                      page, lane, wanted);
  }
  FQ_DEVICE void LoadAll(const std::byte* page, int lane, bool wanted) {
    StaticFor<0, kGroups>([&](auto group) { LoadOne<decltype(group)::value>(page, lane, wanted); });
  }

  FQ_HD static constexpr bool HasStep(int step) {
    return (Codes::At(2 * step) | Codes::At(2 * step + 1)) != 0;
  }
  FQ_HD static constexpr int FirstStep() {  // -1: there is none
    for (int step = 0; step < kGroups / 2; ++step) {
      if (HasStep(step)) return step;
    }
    return -1;
  }
  // A registers of MMA step kStep for every tile.
  template <int kStep>
  FQ_DEVICE void Decode(LaneColumns lane, uint32_t (&a)[kTiles][4]) const {
    uint32_t first[kTiles][2], second[kTiles][2];
    DecodeGroup<Codes::At(2 * kStep), kSide, kRefinement>(words + Codes::Word(2 * kStep), lane,
                                                          first);
    DecodeGroup<Codes::At(2 * kStep + 1), kSide, kRefinement>(words + Codes::Word(2 * kStep + 1),
                                                              lane, second);
    JoinGroups<kSide>(first, second, a);
  }
};

// Query rows of a task in the registers of the B operand.
template <int kHeadSize>
struct QueryRegisters {
  uint32_t b[kHeadSize / 16][2];
  FQ_DEVICE void Load(const std::byte* rows, int lane) {
#pragma unroll
    for (int pair = 0; pair < kHeadSize / 32; ++pair) {
      const uint4 words = LoadNow4(rows + 512 * pair + 16 * lane);
      b[2 * pair][0] = words.x;
      b[2 * pair][1] = words.y;
      b[2 * pair + 1][0] = words.z;
      b[2 * pair + 1][1] = words.w;
    }
  }
};

// The query rows of a piece's task.
template <int kHeadSize>
FQ_DEVICE const std::byte* QueriesOf(const AttendParams& params, const AttendPiece& piece) {
  constexpr AttendQueryLayout kLayout{kHeadSize};
  return Advance<kLayout.Bytes()>(params.queries, static_cast<uint32_t>(piece.task));
}

// What to add to scores of rows 2t and 2t + 1.
template <int kHeadSize>
FQ_DEVICE float2 LoadBias(const std::byte* queries, int parts) {
  constexpr AttendQueryLayout kLayout{kHeadSize};
  const int lane = static_cast<int>(threadIdx.x & 31);
  const float2* shares = reinterpret_cast<const float2*>(queries + kLayout.Bias(parts)) + lane;
  float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
  for (int at = 0; at < kHeadSize / 16 * 4; at += 32) {
    if (at + lane < kHeadSize / 16 * 4) {
      const float2 share = shares[at];
      sum.x += share.x;
      sum.y += share.y;
    }
  }
#pragma unroll
  for (int step = 4; step < 32; step <<= 1) {
    sum.x += __shfl_xor_sync(~0u, sum.x, step);
    sum.y += __shfl_xor_sync(~0u, sum.y, step);
  }
  return sum;
}

// Sums of weight * value: [d / 16] tiles of 16 channels x 8 rows.
template <int kHeadSize>
struct Sums {
  float tile[kHeadSize / 16][4];
  FQ_DEVICE Sums() { Scale(0.0f, 0.0f, true); }
  FQ_DEVICE void Scale(float c0, float c1, bool clear = false) {
#pragma unroll
    for (int i = 0; i < kHeadSize / 16; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) tile[i][e] = clear ? 0.0f : tile[i][e] * (e & 1 ? c1 : c0);
    }
  }
};

// sums *= what the codes of a V side are worth in the coded domain: class-8 codes are integers, and
// refinements are in units of a deviation.
template <int kHeadSize>
FQ_DEVICE void ApplyUnits(const std::byte* record, int part, Sums<kHeadSize>& sums) {
  constexpr TablesLayout kLayout{kHeadSize};
  const float* unit =
      reinterpret_cast<const float*>(record + kLayout.Unit(1, part)) + (threadIdx.x & 31) / 4;
#pragma unroll
  for (int i = 0; i < kHeadSize / 16; ++i) {
    const float low = unit[16 * i], high = unit[16 * i + 8];
    sums.tile[i][0] *= low;
    sums.tile[i][1] *= low;
    sums.tile[i][2] *= high;
    sums.tile[i][3] *= high;
  }
}

// What the accumulators of the scores of a page start at. Four registers of their own: out of two,
// the compiler makes four anew for each tile. From sm_100 on it has no registers for that beside
// refinements. `zero` = AttendParams::zero.
FQ_DEVICE float4 StartOf(const Softmax& softmax, uint32_t zero) {
  const float2 start = softmax.Start();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  return make_float4(start.x, start.y, start.x, start.y);
#else
  const float nothing = __uint_as_float(zero);
  return make_float4(start.x, start.y, start.x + nothing, start.y + nothing);
#endif
}

FQ_DEVICE void FillScores(float4 start, float (&scores)[kTiles][4]) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    scores[j][0] = start.x;
    scores[j][1] = start.y;
    scores[j][2] = start.z;
    scores[j][3] = start.w;
  }
}

// scores = start (kFirst), or themselves, + an MMA step of every tile.
template <bool kFirst>
FQ_DEVICE void MultiplyTiles(const uint32_t (&a)[kTiles][4], uint32_t b0, uint32_t b1, float4 start,
                             float (&scores)[kTiles][4]) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    if constexpr (kFirst) {
      MultiplyFrom(scores[j], start, a[j], b0, b1);
    } else {
      Multiply<false>(scores[j], a[j], b0, b1);
    }
  }
}

// Scores of the 64 tokens of a page. `remainder`: what is in AttendQueryLayout::First alone.
template <typename Side, int kHeadSize>
FQ_DEVICE void ScorePage(const Side& keys, const QueryRegisters<kHeadSize>& q, uint2 remainder,
                         LaneColumns lane, float4 start, float (&scores)[kTiles][4]) {
  constexpr int kFirst = Side::FirstStep();
  if constexpr (kFirst < 0) FillScores(start, scores);
  StaticFor<0, kHeadSize / 16>([&](auto step) {
    constexpr int s = decltype(step)::value;
    if constexpr (Side::HasStep(s)) {
      uint32_t a[kTiles][4];
      keys.template Decode<s>(lane, a);
      MultiplyTiles<s == kFirst>(a, q.b[s][0], q.b[s][1], start, scores);
      if constexpr (s == 0) MultiplyTiles<false>(a, remainder.x, remainder.y, start, scores);
    }
  });
}

// sums += values of a page * weights.
template <typename Side, int kHeadSize>
FQ_DEVICE void AddValues(const Side& values, const uint32_t (&weights)[kTiles][2], LaneColumns lane,
                         Sums<kHeadSize>& sums) {
  StaticFor<0, kHeadSize / 16>([&](auto step) {
    constexpr int s = decltype(step)::value;
    if constexpr (Side::HasStep(s)) {
      uint32_t a[kTiles][4];
      values.template Decode<s>(lane, a);
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        Multiply<false>(sums.tile[s], a[j], weights[j][0], weights[j][1]);
      }
    }
  });
}

// The address that an entry of a page table stands for.
FQ_DEVICE const std::byte* PageAt(const std::byte* origin, uint32_t entry) {
  return Advance<64>(origin, entry);
}

// Of 64 times the tokens behind a page, plus its first token that counts: the sign and that token.
inline constexpr uint32_t kNotWholePage = 0x8000003Fu;

// Scores of tokens outside [begin, end) of the page become minus infinity.
FQ_DEVICE void MaskKeys(float (&scores)[kTiles][4], int begin, int end) {
  const int g = static_cast<int>(threadIdx.x & 31) >> 2;
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int token = KeyToken(m, e >> 1) + g;
      if (token < begin || token >= end) scores[m][e] = MinusInfinity();
    }
  }
}

// Weights of a tile, of tokens g (r = 0) and g + 8, as the B operand of the value product.
FQ_DEVICE void PackKeyWeights(const float (&weights)[kTiles][4], int tile, uint32_t (&b)[2]) {
  const int m = tile / 2 * 2, high = tile % 2 * 2;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    b[r] = Transpose(PackPair<false>(weights[m + r][high], weights[m + r][high + 1]));
  }
}

// The pages of a piece without refinements. Profile::K and ::V are Classes. Codes go from L2 to
// registers half a page ahead of their use: V while the scores are made, the K of the next page
// while the values are added up. Half a page of few bytes is short: then the page behind the next
// is brought into L2.
template <typename Profile, int kHeadSize>
FQ_DEVICE void AttendBase(const AttendParams& params, const AttendPiece& piece, Softmax& softmax,
                          Sums<kHeadSize>& sums) {
  const LaneColumns lane = KeptColumnsOfLane();
  const std::byte* queries = QueriesOf<kHeadSize>(params, piece);
  const int lane_index = static_cast<int>(threadIdx.x & 31);
  using K = typename Profile::K;
  using V = typename Profile::V;
  constexpr int kGroups = kHeadSize / 8;
  constexpr AttendQueryLayout kLayout{kHeadSize};
  RawSide<K, 0, false, kHeadSize, 0> keys;
  RawSide<V, 1, false, kHeadSize, K::Offset(kGroups)> values;
  const uint32_t* table = params.pages + piece.table_begin;
  const std::byte* origin = params.pool + piece.offset;
  const int last = piece.page_count - 1;
  const std::byte* page = PageAt(origin, PageEntry(table, 0));
  uint32_t next = PageEntry(table, min(1, last));
  constexpr int kBytes = K::Offset(kGroups) + V::Offset(kGroups);
  constexpr bool kPrefetch = kBytes < 24 * kHeadSize;  // 1.5 bits a value
  uint32_t behind = kPrefetch ? PageEntry(table, min(2, last)) : 0;
  keys.LoadAll(page, lane_index, true);
  QueryRegisters<kHeadSize> q;
  q.Load(queries + kLayout.Coded(0), lane_index);
  const uint2 remainder = LoadNow2(queries + kLayout.First() + 16 * lane_index + 8);
  softmax.Shift(LoadBias<kHeadSize>(queries, 1), -1.0f);
  // 64 times the tokens that are left behind this page, and the first token of it that counts.
  int left = piece.token_begin + 64 * (piece.token_end - 64);
  int i = 0;
  bool more;
  do {
    more = left >= 64;
    values.LoadAll(page, LaneAfter(lane_index, keys.words[0], params.zero), true);
    if (kPrefetch && lane_index == 0) PrefetchToL2(PageAt(origin, behind), kBytes);
    float scores[kTiles][4];
    ScorePage(keys, q, remainder, lane, StartOf(softmax, params.zero), scores);
    if ((left & kNotWholePage) != 0) {
      MaskKeys(scores, left & 63, (left >> 6) + 64);
      left &= ~63;
    }
    softmax.Weigh(scores, [&](float c0, float c1) { sums.Scale(c0, c1); });
    uint32_t weights[kTiles][2];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) PackKeyWeights(scores, j, weights[j]);
    page = PageAt(origin, next);
    keys.LoadAll(page, LaneAfter(lane_index, values.words[0], params.zero), more);
    next = kPrefetch ? behind : PageEntry(table, min(i + 2, last));
    if (kPrefetch) behind = PageEntry(table, min(i + 3, last));
    AddValues(values, weights, lane, sums);
    left -= 64 * 64;
    ++i;
  } while (more);
  softmax.Shift(LoadBias<kHeadSize>(QueriesOf<kHeadSize>(params, piece), 1), 1.0f);
  ApplyUnits(params.records[blockIdx.x], 0, sums);
}

}  // namespace fq
