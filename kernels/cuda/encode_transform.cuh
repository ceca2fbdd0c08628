// A (x - mu) for a page: what the encoder looks for in its tables.
#pragma once

#include "kernels/cuda/encode_side.cuh"
#include "kernels/cuda/group_codes.cuh"
#include "kernels/cuda/page_rows.cuh"

namespace fq {

// The lane's values of two neighbouring groups, by tile and 2 r + e.
struct GroupPair {
  float u[2][4][4];  // [group][tile]
};

// Adds the products of a tile of rows with a term of the matrix.
template <Side kSide>
__device__ void AddProducts(float (&u)[2][4], const uint4& x, const uint4& matrix) {
  if (kSide == Side::kKey) {
    MultiplyAdd(u[0], x, matrix.x, matrix.y);
    MultiplyAdd(u[1], x, matrix.z, matrix.w);
  } else {
    MultiplyAdd(u[0], matrix, x.x, x.y);
    MultiplyAdd(u[1], matrix, x.z, x.w);
  }
}

// Products of K [tile][group][2 r + e] or of V [tile][r][2 group + e] with scale and bias.
template <int kHeadSize, Side kSide>
__device__ GroupPair Finished(const EncodeSide& side, int pair, const float (&product)[4][2][4]) {
  constexpr CoderLayout kLayout{kHeadSize};
  GroupPair out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int group = i >> 1, e = i & 1;
    const int component = kGroupChannels * (2 * pair + group) + ComponentOf(kSide, side.lane, e);
    const float scale =
        At<float>(side.coder, kLayout.ComponentScale())[component] * Shared().row_unit;
    const float bias = At<float>(side.coder, kLayout.ComponentBias())[component];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int tile = j >> 1, r = j & 1;
      const float value =
          kSide == Side::kKey ? product[tile][group][2 * r + e] : product[tile][r][2 * group + e];
      out.u[group][tile][2 * r + e] = fmaf(value, scale, bias);
    }
  }
  return out;
}

// A (x - mu) of 16 components. The products of K are tokens x components,
// those of V components x tokens: what lane 4 g + t gets is what its codes are made of.
template <int kHeadSize, Side kSide>
__device__ GroupPair MultiplyForward(const EncodeSide& side, int pair) {
  constexpr CoderLayout kLayout{kHeadSize};
  const uint4* matrix =
      At<uint4>(side.coder, kLayout.Forward()) + pair * kLayout.Steps() * 64 + side.lane;
  // The lane's part in loading a tile: a row, and the lower or upper half of a step's channels. The
  // words of a tile are those of an A operand, or of two B operands.
  const bool high_row = (side.lane >> (kSide == Side::kKey ? 3 : 4) & 1) != 0;
  const bool high_half = (side.lane >> (kSide == Side::kKey ? 4 : 3) & 1) != 0;
  const std::byte* rows =
      SharedRow<kHeadSize>((side.lane & 7) + (high_row ? 8 : 0)) + (high_half ? 16 : 0);
  float product[4][2][4] = {};
  uint4 next[2] = {LoadConstant<uint4>(matrix), LoadConstant<uint4>(matrix + 32)};
#pragma unroll 2
  for (int step = 0; step < kLayout.Steps(); ++step) {
    const uint4 terms[2] = {next[0], next[1]};
    if (step + 1 < kLayout.Steps()) {
      matrix += 64;
      next[0] = LoadConstant<uint4>(matrix);
      next[1] = LoadConstant<uint4>(matrix + 32);
    }
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      const uint4 x = LoadTile(rows + 16 * tile * RowBytes(kHeadSize) + 32 * step);
      AddProducts<kSide>(product[tile], x, terms[0]);
      AddProducts<kSide>(product[tile], x, terms[1]);
    }
  }
  return Finished<kHeadSize, kSide>(side, pair, product);
}

// The lane's values of one of the groups; rows without codes become 0.
__device__ inline void TakeGroup(const EncodeSide& side, const GroupPair& in, int group,
                                 float (&u)[kLaneValues]) {
  const bool odd = (group & 1) != 0;
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) {
    u[i] = odd ? in.u[1][i >> 2][i & 3] : in.u[0][i >> 2][i & 3];
  }
  const int begin = SinkEnd(Shared().job), end = Shared().job.tokens;
  if (begin == 0 && end == kPageTokens) return;
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) {
    const int token = TokenOf(side.side(), side.lane, i);
    if (token < begin || token >= end) u[i] = 0.0f;
  }
}

}  // namespace fq
