// Attention of one warp over rows that are not in the coded domain: exact pages and sink records,
// 16 tokens at a time. Few tokens of a sequence are such, so this code is short rather than fast.
// Device code, also compiled at run time.
#pragma once

#include "kernels/cuda/attend_coded.cuh"

namespace fq {

// 16 rows of an exact page in its own element type, as MMA operands.
template <int kHeadSize, bool kIsBf16>
struct ExactTile {
  static constexpr bool kBf16 = kIsBf16;
  const std::byte* keys;  // row 0 of the tile
  const std::byte* values;
  float scale;  // of scores

  FQ_DEVICE float KeyScale(int) const { return scale; }
  FQ_DEVICE static float ValueScale(int) { return 1.0f; }
  // Elements 2 column, 2 column + 1 of a row.
  FQ_DEVICE uint32_t Pair(const std::byte* rows, int row, int column) const {
    return LoadNow(rows + (row * kHeadSize + 2 * column) * 2);
  }
  FQ_DEVICE uint32_t KeyPair(int row, int column) const { return Pair(keys, row, column); }
  FQ_DEVICE uint32_t ValuePair(int row, int column) const { return Pair(values, row, column); }
};

// The 16 rows of a sink record: int8 times a scale of the row.
template <int kHeadSize>
struct SinkTile {
  static constexpr bool kBf16 = false;
  const std::byte* record;
  float scale;  // of scores

  FQ_DEVICE float Scale(int row) const {
    return reinterpret_cast<const float*>(record + 32 * kHeadSize)[row];
  }
  FQ_DEVICE float KeyScale(int row) const { return Scale(row) * scale; }
  FQ_DEVICE float ValueScale(int row) const { return Scale(16 + row); }
  FQ_DEVICE uint32_t Pair(int row, int column) const {
    const char2 pair = reinterpret_cast<const char2*>(record + row * kHeadSize)[column];
    return PackPair<false>(static_cast<float>(pair.x), static_cast<float>(pair.y));
  }
  FQ_DEVICE uint32_t KeyPair(int row, int column) const { return Pair(row, column); }
  FQ_DEVICE uint32_t ValuePair(int row, int column) const { return Pair(16 + row, column); }
};

// One tile of 16 tokens; those outside [begin, end) do not count.
template <int kHeadSize, typename Tile, typename Query>
FQ_DEVICE void AttendTile(const Tile& tile, const Query& q, int begin, int end, Softmax& softmax,
                          Sums<kHeadSize>& sums) {
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2, t = lane & 3;
  float scores[1][4] = {};
#pragma unroll
  for (int s = 0; s < kHeadSize / 16; ++s) {
    const uint32_t a[4] = {tile.KeyPair(g, 8 * s + t), tile.KeyPair(g + 8, 8 * s + t),
                           tile.KeyPair(g, 8 * s + 4 + t), tile.KeyPair(g + 8, 8 * s + 4 + t)};
    Multiply<Tile::kBf16>(scores[0], a, q.b[s][0], q.b[s][1]);
  }
  const float low = tile.KeyScale(g), high = tile.KeyScale(g + 8);
  const float2 start = softmax.Start();
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    scores[0][e] = scores[0][e] * (e >> 1 ? high : low) + (e & 1 ? start.y : start.x);
  }
  MaskTokens(scores, 0, begin, end);
  softmax.Weigh(scores, [&](float c0, float c1) { sums.Scale(c0, c1); });
#pragma unroll
  for (int e = 0; e < 4; ++e) scores[0][e] *= tile.ValueScale(g + 8 * (e >> 1));
  uint32_t weights[2];
  PackWeights<Tile::kBf16>(scores[0], weights);
#pragma unroll
  for (int s = 0; s < kHeadSize / 16; ++s) {
    const uint32_t a[4] = {Transpose(tile.ValuePair(g, 8 * s + t)),
                           Transpose(tile.ValuePair(g, 8 * s + 4 + t)),
                           Transpose(tile.ValuePair(g + 8, 8 * s + t)),
                           Transpose(tile.ValuePair(g + 8, 8 * s + 4 + t))};
    Multiply<Tile::kBf16>(sums.tile[s], a, weights[0], weights[1]);
  }
}

// The pages of an exact piece.
template <int kHeadSize, bool kBf16>
FQ_DEVICE void AttendExact(const AttendParams& params, const AttendPiece& piece, Softmax& softmax,
                           Sums<kHeadSize>& sums) {
  constexpr AttendQueryLayout kLayout{kHeadSize};
  constexpr int kTileBytes = 16 * kHeadSize * 2;
  QueryRegisters<kHeadSize> q;
  q.Load(QueriesOf<kHeadSize>(params, piece) + kLayout.Plain(), static_cast<int>(threadIdx.x & 31));
#pragma unroll 1
  for (int first = piece.token_begin / 16 * 16; first < piece.token_end; first += 16) {
    const std::byte* page =
        PageAt(params.pool + piece.offset, PageEntry(params.pages + piece.table_begin, first / 64));
    const std::byte* keys = page + first % 64 / 16 * kTileBytes;
    const ExactTile<kHeadSize, kBf16> tile{keys, keys + 4 * kTileBytes, params.scale};
    AttendTile<kHeadSize>(tile, q, piece.token_begin - first, piece.token_end - first, softmax,
                          sums);
  }
}

// The sink record of a page. Its rows are FP16 integers, so BF16 queries become FP16 first.
template <int kHeadSize, bool kBf16>
FQ_DEVICE void AttendSink(const AttendParams& params, const AttendPiece& piece, Softmax& softmax,
                          Sums<kHeadSize>& sums) {
  constexpr AttendQueryLayout kLayout{kHeadSize};
  QueryRegisters<kHeadSize> q;
  q.Load(QueriesOf<kHeadSize>(params, piece) + kLayout.Plain(), static_cast<int>(threadIdx.x & 31));
  if constexpr (kBf16) {
#pragma unroll
    for (int s = 0; s < kHeadSize / 16; ++s) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        q.b[s][i] = PackPair<false>(__uint_as_float(q.b[s][i] << 16),
                                    __uint_as_float(q.b[s][i] & 0xFFFF0000u));
      }
    }
  }
  const SinkTile<kHeadSize> tile{
      PageAt(params.pool + piece.offset, PageEntry(params.pages + piece.table_begin, 0)),
      params.scale};
  AttendTile<kHeadSize>(tile, q, piece.token_begin, piece.token_end, softmax, sums);
}

}  // namespace fq
