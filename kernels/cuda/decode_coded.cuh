// The coded domain of a page, into an engine's rows.
#pragma once

#include "kernels/cuda/decode_values.cuh"

namespace fq {

// Rows of the coded domain in shared memory, elements of 2 bytes.
template <int kHeadSize, Side kSide>
__device__ void FillHalfRows(const DecodeSide& side, bool half, std::byte* rows) {
  constexpr int kStride = CodedStride(kHeadSize, 2) / 4;
  auto* words = reinterpret_cast<uint32_t*>(rows) + (side.lane >> 2) * kStride + (side.lane & 3);
  for (int group = static_cast<int>(threadIdx.x) / 32; group < kHeadSize / kGroupChannels;
       group += kDecodeWarps) {
    GroupWords own;
    if (half && !side.refined && side.bits(0, group) != 8) {
      own = BaseWords(PartOf(side, 0, group), side.lane);  // the tables hold FP16
    } else {
      float v[kLaneValues];
      DecodeGroup<kHeadSize, kSide>(side, group, v);
      own = PackGroup(half, v);
    }
    own = ByToken<kSide>(own);
#pragma unroll
    for (int i = 0; i < 8; ++i) words[8 * i * kStride + 4 * group] = own.word[i >> 1][i & 1];
  }
}

template <int kHeadSize, Side kSide>
__device__ void FillFloatRows(const DecodeSide& side, std::byte* rows) {
  constexpr int kStride = CodedStride(kHeadSize, 4) / 4;
  for (int group = static_cast<int>(threadIdx.x) / 32; group < kHeadSize / kGroupChannels;
       group += kDecodeWarps) {
    float v[kLaneValues];
    DecodeGroup<kHeadSize, kSide>(side, group, v);
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) {
      reinterpret_cast<float*>(rows)[TokenOf(kSide, side.lane, i) * kStride +
                                     kGroupChannels * group + ComponentOf(kSide, side.lane, i)] =
          v[i];
    }
  }
}

template <int kHeadSize, Side kSide>
__device__ void DecodeToCoded(const DecodeSide& side, const RowTarget& target) {
  std::byte* rows = side.memory + side.regions.Values();
  const int element = ElementBytes(target.dtype), chunks = kHeadSize * element / 16;
  if (element == 2) {
    FillHalfRows<kHeadSize, kSide>(side, target.dtype == DType::kF16, rows);
  } else {
    FillFloatRows<kHeadSize, kSide>(side, rows);
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kPageTokens * chunks; i += kDecodeThreads) {
    const int token = i / chunks, at = i % chunks * 16;
    if (token < target.begin || token >= target.end) continue;
    *reinterpret_cast<uint4*>(target.base + element * target.offsets[token] + at) =
        *reinterpret_cast<const uint4*>(rows + token * CodedStride(kHeadSize, element) + at);
  }
}

}  // namespace fq
