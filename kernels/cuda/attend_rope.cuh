// The engine's kernel before attention: rotates Q and K by their positions (RoPE), puts K and V
// into the engine's paged cache, and brings the rotated query rows into the coded domain at once.
#pragma once

#include "kernels/cuda/attend_query.cuh"

namespace fq {

struct RopeParams {
  QueryParams query;                 // its `q` is `rotated_q`
  const void *q, *k, *v;             // [tokens][heads][d], FP16 or BF16
  const void* cos_sin;               // [positions][d]: cosines of the d / 2 pairs, then sines
  const int64_t *positions, *slots;  // [tokens]
  void *rotated_q, *key_cache, *value_cache;
  int64_t q_stride, k_stride, v_stride;             // words between tokens
  int64_t block_stride, token_stride, head_stride;  // words in the caches
  int tokens, query_heads, kv_heads, block_tokens;
  int query_blocks;  // blocks of the grid that are for queries; the others append
};

// Components c and c + d / 2 of two neighbouring pairs, rotated.
template <bool kBf16>
FQ_DEVICE void Rotate(uint32_t& low, uint32_t& high, uint32_t cosines, uint32_t sines) {
  const float2 x = UnpackElements<kBf16>(low), y = UnpackElements<kBf16>(high),
               c = UnpackElements<kBf16>(cosines), s = UnpackElements<kBf16>(sines);
  low = PackPair<kBf16>(x.x * c.x - y.x * s.x, x.y * c.y - y.y * s.y);
  high = PackPair<kBf16>(y.x * c.x + x.x * s.x, y.y * c.y + x.y * s.y);
}

FQ_DEVICE const uint32_t* Words(const void* from, int64_t at) {
  return static_cast<const uint32_t*>(from) + at;
}
FQ_DEVICE uint32_t* Words(void* to, int64_t at) { return static_cast<uint32_t*>(to) + at; }

// Query rows, rotated; each warp writes its share of them.
template <int kHeadSize, bool kBf16>
class RotatedRows {
  static constexpr int kHalf = kHeadSize / 32;

 public:
  FQ_DEVICE explicit RotatedRows(const RopeParams& params) : params_(params) {}

  FQ_DEVICE void Load(int row, int t, uint32_t (&words)[2 * kHalf][2]) const {
#pragma unroll
    for (int s = 0; s < kHalf; ++s) LoadPairs(row, s, t, words[s], words[s + kHalf]);
  }
  FQ_DEVICE void LoadShare(int row, int share, int t, uint32_t (&words)[2]) const {
    uint32_t low[2], high[2];
    LoadPairs(row, share % kHalf, t, low, high);
    uint32_t* to = Words(params_.rotated_q, static_cast<int64_t>(row) * (kHeadSize / 2)) + t;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      words[i] = share < kHalf ? low[i] : high[i];
      to[8 * share + 4 * i] = words[i];
    }
  }

 private:
  // The words of s and of s + kHalf: components that are rotated together.
  FQ_DEVICE void LoadPairs(int row, int s, int t, uint32_t (&low)[2], uint32_t (&high)[2]) const {
    const int token = row / params_.query_heads, head = row % params_.query_heads;
    const PlainRows<kHeadSize> heads{Words(params_.q, token * params_.q_stride)};
    const PlainRows<kHeadSize> angles{params_.cos_sin};
    const int position = static_cast<int>(params_.positions[token]);
    uint32_t cosines[2], sines[2];
    heads.LoadShare(head, s, t, low);
    heads.LoadShare(head, s + kHalf, t, high);
    angles.LoadShare(position, s, t, cosines);
    angles.LoadShare(position, s + kHalf, t, sines);
#pragma unroll
    for (int i = 0; i < 2; ++i) Rotate<kBf16>(low[i], high[i], cosines[i], sines[i]);
  }

  const RopeParams& params_;
};

// K rotated, and V, of one token and head. A warp's work.
template <int kHeadSize, bool kBf16>
FQ_DEVICE void AppendRow(const RopeParams& params, int token, int head) {
  const int64_t slot = params.slots[token];
  if (slot < 0) return;
  const int64_t at = slot / params.block_tokens * params.block_stride +
                     slot % params.block_tokens * params.token_stride + head * params.head_stride;
  constexpr int kHalf = kHeadSize / 4;  // words
  const uint32_t* k = Words(params.k, token * params.k_stride + head * (kHeadSize / 2));
  const uint32_t* v = Words(params.v, token * params.v_stride + head * (kHeadSize / 2));
  const uint32_t* cosines = Words(params.cos_sin, params.positions[token] * (kHeadSize / 2));
  uint32_t *keys = Words(params.key_cache, at), *values = Words(params.value_cache, at);
  for (int i = static_cast<int>(threadIdx.x & 31); i < kHalf; i += 32) {
    uint32_t low = k[i], high = k[i + kHalf];
    Rotate<kBf16>(low, high, cosines[i], cosines[i + kHalf]);
    keys[i] = low;
    keys[i + kHalf] = high;
    values[i] = v[i];
    values[i + kHalf] = v[i + kHalf];
  }
}

// Grid: query_blocks, and a warp for each token and kv head.
template <int kHeadSize, bool kBf16>
__global__ void __launch_bounds__(kQueryThreads)
    RotateAndAppend(const __grid_constant__ RopeParams params) {
  const int block = static_cast<int>(blockIdx.x) - params.query_blocks;
  if (block < 0) {
    PrepareTasks<kHeadSize, kBf16>(params.query, RotatedRows<kHeadSize, kBf16>(params));
    return;
  }
  WaitForPrevious();
  LetNextStart();
  const int row = block * (kQueryThreads / 32) + static_cast<int>(threadIdx.x / 32);
  const int token = row / params.kv_heads;
  if (token < params.tokens) AppendRow<kHeadSize, kBf16>(params, token, row % params.kv_heads);
}

}  // namespace fq
