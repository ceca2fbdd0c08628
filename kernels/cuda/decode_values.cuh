// Channel groups out of their codes.
#pragma once

#include "kernels/cuda/decode_side.cuh"
#include "kernels/cuda/group_codes.cuh"

namespace fq {

// The lane's values of a group in the coded domain, bit for bit as on the CPU.
template <int kHeadSize, Side kSide>
__device__ void DecodeGroup(const DecodeSide& side, int group, float (&v)[kLaneValues]) {
  constexpr CoderLayout kLayout{kHeadSize};
  ReadGroup(side.bits(0, group), side.codes(0, group), side.lookups(0), side.lane, v);
  if (!side.refined || side.bits(1, group) == 0) return;
  float refinement[kLaneValues];
  ReadGroup(side.bits(1, group), side.codes(1, group), side.lookups(1), side.lane, refinement);
  const float* sd = At<float>(side.coder, kLayout.Sd()) + kGroupChannels * group;
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) {
    v[i] = Refined(v[i], refinement[i], sd[ComponentOf(kSide, side.lane, i)]);
  }
}

// A group as pairs of neighbouring components of a token: FP16 or BF16, [tile][r].
struct GroupWords {
  uint32_t word[4][2];
};

// Gives the lane of a pair of V what it holds of K: token 16 tile + 8 r + g, components 2 t and
// 2 t + 1.
template <Side kSide>
__device__ GroupWords ByToken(const GroupWords& in) {
  GroupWords out;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t pair = in.word[i >> 1][i & 1];
    out.word[i >> 1][i & 1] = kSide == Side::kKey ? pair : Transpose(pair);
  }
  return out;
}

// Rounds values of [tile][2 r + e].
__device__ inline GroupWords PackGroup(bool half, const float (&v)[kLaneValues]) {
  GroupWords out;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float first = v[2 * i], second = v[2 * i + 1];
    out.word[i >> 1][i & 1] = half ? PackHalves(first, second) : PackBFloat16(first, second);
  }
  return out;
}

// A group of the base as it meets the transform: FP16, class 8 in whole steps.
__device__ inline GroupWords BaseWords(const DecodeSide& side, int group) {
  GroupWords out = {};
  const int bits = side.bits(0, group);
  const uint32_t* tables = side.lookups(0) + TableWord(bits);
  const std::byte* own = side.codes(0, group) + 2 * bits * side.lane;
  if (bits == 8) {
    const uint4 codes = *reinterpret_cast<const uint4*>(own);
    const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t pair = words[i >> 1] >> (16 * (i & 1));
      const int first = static_cast<int>(pair & 255u), second = static_cast<int>(pair >> 8 & 255u);
      out.word[i >> 1][i & 1] =
          PackHalves(static_cast<float>(first - 128), static_cast<float>(second - 128));
    }
  } else if (bits == 4) {
    const uint2 codes = *reinterpret_cast<const uint2*>(own);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t four = i < 4 ? codes.x : codes.y;
      out.word[i >> 1][i & 1] = tables[four >> (8 * (i & 3)) & 255u];
    }
  } else if (bits == 2) {
    const uint32_t codes = *reinterpret_cast<const uint32_t*>(own);
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      const uint32_t chain = tables[codes >> (8 * tile) & 255u];
      out.word[tile][0] = chain;
      out.word[tile][1] = ChainPair(chain, 1);
    }
  } else if (bits == 1) {
    const uint32_t codes = *reinterpret_cast<const uint16_t*>(own);
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const uint2 chains = reinterpret_cast<const uint2*>(tables)[codes >> (8 * pair) & 255u];
      out.word[2 * pair][0] = chains.x;
      out.word[2 * pair][1] = ChainPair(chains.x, 1);
      out.word[2 * pair + 1][0] = chains.y;
      out.word[2 * pair + 1][1] = ChainPair(chains.y, 1);
    }
  }
  return out;
}

// What a step of the transform takes of a refined group: high and, with two terms, low term.
template <int kHeadSize, Side kSide, int kTerms>
__device__ void RefinedWords(const DecodeSide& side, int group, GroupWords (&terms)[kTerms]) {
  constexpr CoderLayout kLayout{kHeadSize};
  float v[kLaneValues], feed[2];
  DecodeGroup<kHeadSize, kSide>(side, group, v);
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    feed[e] = At<float>(side.coder,
                        kLayout.Feed())[kGroupChannels * group + ComponentOf(kSide, side.lane, e)];
  }
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) v[i] = Clamp(v[i] * feed[i & 1], kInputLimit);
  terms[0] = PackGroup(true, v);
  if constexpr (kTerms == 2) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float2 rounded = WidenHalves(terms[0].word[i >> 1][i & 1]);
      v[2 * i] -= rounded.x;
      v[2 * i + 1] -= rounded.y;
    }
    terms[1] = PackGroup(true, v);
  }
}

}  // namespace fq
