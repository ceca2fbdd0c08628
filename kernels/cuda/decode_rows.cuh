// x = Ai v + mu for a page, into an engine's rows.
#pragma once

#include "kernels/cuda/decode_values.cuh"

namespace fq {

// Puts two groups into the fragments [step][tile][lane] of 16 bytes.
template <Side kSide>
__device__ void StoreStep(int lane, int step, const GroupWords& even, const GroupWords& odd,
                          std::byte* fragments) {
  const GroupWords first = ByToken<kSide>(even), second = ByToken<kSide>(odd);
#pragma unroll
  for (int tile = 0; tile < 4; ++tile) {
    reinterpret_cast<uint4*>(fragments)[(4 * step + tile) * 32 + lane] = make_uint4(
        first.word[tile][0], first.word[tile][1], second.word[tile][0], second.word[tile][1]);
  }
}

// Which tokens of the page a lane's accumulators hold: 16 tile + g and + 8.
template <int kTiles>
struct Accumulators {
  float x[kTiles][4][4];  // [tile of 16 tokens][tile of 8 channels][d of the MMA]
};

// Adds the products of a tile of tokens with 32 columns of a term of the matrix.
__device__ inline void AddProducts(float (&x)[4][4], const uint4& a, const uint4& b01,
                                   const uint4& b23) {
  MultiplyAdd(x[0], a, b01.x, b01.y);
  MultiplyAdd(x[1], a, b01.z, b01.w);
  MultiplyAdd(x[2], a, b23.x, b23.y);
  MultiplyAdd(x[3], a, b23.z, b23.w);
}

// The inverse matrix for a block of 32 channels and a step, in one term or two.
template <int kTerms>
struct InverseStep {
  uint4 high01, high23, low01, low23;

  __device__ void Load(const uint4* matrix, int step) {
    const uint4* at = matrix + step * 128;
    high01 = LoadConstant<uint4>(at);
    high23 = LoadConstant<uint4>(at + 32);
    if constexpr (kTerms == 2) {
      low01 = LoadConstant<uint4>(at + 64);
      low23 = LoadConstant<uint4>(at + 96);
    }
  }
};

// Adds the products of a step's values, in as many terms, with the matrix.
template <int kHeadSize, int kTiles, int kTerms>
__device__ void AddStep(const DecodeSide& side, const InverseStep<kTerms>& matrix,
                        const uint4* values, Accumulators<kTiles>* out) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const uint4 a = values[tile * 32];
    AddProducts(out->x[tile], a, matrix.high01, matrix.high23);
    if constexpr (kTerms == 2) {
      AddProducts(out->x[tile], a, matrix.low01, matrix.low23);
      if (!side.refined) continue;
      AddProducts(out->x[tile], values[TermBytes(kHeadSize) / 16 + tile * 32], matrix.high01,
                  matrix.high23);
    }
  }
}

// x = fragments times the inverse matrix, for kTiles tiles of tokens and a block of 32 channels.
// One term leaves 2^-12 of an element, less than the rounding of FP16 rows. The matrix of each step
// is on its way while the products of the one before are made.
template <int kHeadSize, int kTiles, int kTerms>
__device__ void MultiplyInverse(const DecodeSide& side, int block, const std::byte* fragments,
                                Accumulators<kTiles>* out) {
  constexpr CoderLayout kLayout{kHeadSize};
  const uint4* matrix =
      At<uint4>(side.coder, kLayout.Inverse()) + block * kLayout.Steps() * 128 + side.lane;
  const uint4* values = reinterpret_cast<const uint4*>(fragments) + side.lane;
  uint32_t used = side.shared().used;
  used = (used | used >> 1) & 0x55555555u;  // bit 2 s: step s has codes
  if (used == 0) return;
  InverseStep<kTerms> next;
  next.Load(matrix, LowestBit(used) / 2);
#pragma unroll 1
  while (used != 0) {
    const InverseStep<kTerms> step = next;
    const uint4* own = values + LowestBit(used) * 64;
    used &= used - 1;
    if (used != 0) next.Load(matrix, LowestBit(used) / 2);
    AddStep<kHeadSize>(side, step, own, out);
  }
}

template <int kHeadSize, DType kDType, int kTiles>
__device__ void StoreProducts(const DecodeSide& side, int block, int first_token,
                              const Accumulators<kTiles>& in, const RowTarget& target) {
  constexpr CoderLayout kLayout{kHeadSize};
  const int channel = 32 * block + 8 * (side.lane & 3);
  std::byte* base = target.base + ElementBytes(kDType) * channel;
  float scale[8], mu[8];
  LoadEight(At<float>(side.coder, kLayout.OutputScale()) + channel, scale);
  LoadEight(At<float>(side.coder, kLayout.Mu()) + channel, mu);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float x[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] = fmaf(in.x[tile][i >> 1][2 * r + (i & 1)], scale[i], mu[i]);
      const int token = first_token + 16 * tile + 8 * r + (side.lane >> 2);
      if (token < target.begin || token >= target.end) continue;
      StoreChannels(kDType, base, target.offsets[token], x);
    }
  }
}

// The warps share the blocks of 32 channels; small heads split the tokens as well. FP32 rows take
// two terms.
template <int kHeadSize, int kTerms>
__device__ void DeliverRows(const DecodeSide& side, const std::byte* fragments,
                            const RowTarget& target) {
  constexpr int kTiles = kHeadSize < 128 ? 2 : 4, kBlocks = kHeadSize / 32;
  for (int unit = static_cast<int>(threadIdx.x) / 32; unit < kBlocks * 4 / kTiles;
       unit += kDecodeWarps) {
    const int block = unit % kBlocks, first_tile = unit / kBlocks * kTiles;
    Accumulators<kTiles> product = {};
    const std::byte* own = fragments + first_tile * 32 * 16;
    MultiplyInverse<kHeadSize, kTiles, kTerms>(side, block, own, &product);
    if constexpr (kTerms == 2) {
      StoreProducts<kHeadSize, DType::kF32>(side, block, 16 * first_tile, product, target);
    } else if (target.dtype == DType::kF16) {
      StoreProducts<kHeadSize, DType::kF16>(side, block, 16 * first_tile, product, target);
    } else {
      StoreProducts<kHeadSize, DType::kBF16>(side, block, 16 * first_tile, product, target);
    }
  }
}

template <int kHeadSize, Side kSide, int kTerms>
__device__ void DecodeToRows(const DecodeSide& side, const RowTarget& target) {
  std::byte* fragments = side.memory + side.regions.Values();
  for (int step = static_cast<int>(threadIdx.x) / 32; step < kHeadSize / 16; step += kDecodeWarps) {
    if (!side.refined) {
      StoreStep<kSide>(side.lane, step, BaseWords(PartOf(side, 0, 2 * step), side.lane),
                       BaseWords(PartOf(side, 0, 2 * step + 1), side.lane), fragments);
      continue;
    }
    GroupWords even[kTerms], odd[kTerms];
    float v[kLaneValues];
    DecodeGroup<kHeadSize, kSide>(side, 2 * step, v);
    FeedWords<kHeadSize, kSide>(side.coder, 2 * step, side.lane, v, even);
    DecodeGroup<kHeadSize, kSide>(side, 2 * step + 1, v);
    FeedWords<kHeadSize, kSide>(side.coder, 2 * step + 1, side.lane, v, odd);
#pragma unroll
    for (int term = 0; term < kTerms; ++term) {
      StoreStep<kSide>(side.lane, step, even[term], odd[term],
                       fragments + term * TermBytes(kHeadSize));
    }
  }
  __syncthreads();
  DeliverRows<kHeadSize, kTerms>(side, fragments, target);
}

}  // namespace fq
