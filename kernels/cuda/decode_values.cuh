// Channel groups out of their codes.
#pragma once

#include "kernels/cuda/decode_side.cuh"
#include "kernels/cuda/group_codes.cuh"

namespace fq {

// What one part of a group decodes from; class 0 where the page has no refinement.
struct GroupPart {
  int bits;
  const std::byte* codes;
  const uint32_t* lookups;
};

// The lane's values of a group in the coded domain, bit for bit as on the CPU. `sd` is the coder's.
template <Side kSide>
__device__ void DecodeParts(const GroupPart& base, const GroupPart& refined, const float* sd,
                            int group, int lane, float (&v)[kLaneValues]) {
  ReadGroup(base.bits, base.codes, base.lookups, lane, v);
  if (refined.bits == 0) return;
  float refinement[kLaneValues];
  ReadGroup(refined.bits, refined.codes, refined.lookups, lane, refinement);
  sd += kGroupChannels * group;
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) {
    v[i] = Refined(v[i], refinement[i], sd[ComponentOf(kSide, lane, i)]);
  }
}

__device__ inline GroupPart PartOf(const DecodeSide& side, int part, int group) {
  return {side.bits(part, group), side.codes(part, group), side.lookups(part)};
}
template <int kHeadSize, Side kSide>
__device__ void DecodeGroup(const DecodeSide& side, int group, float (&v)[kLaneValues]) {
  constexpr CoderLayout kLayout{kHeadSize};
  const GroupPart refined = side.refined ? PartOf(side, 1, group) : GroupPart{};
  DecodeParts<kSide>(PartOf(side, 0, group), refined, At<float>(side.coder, kLayout.Sd()), group,
                     side.lane, v);
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
__device__ inline GroupWords BaseWords(const GroupPart& base, int lane) {
  const int bits = base.bits;
  GroupWords out = {};
  const uint32_t* tables = base.lookups + TableWord(bits);
  const std::byte* own = base.codes + 2 * bits * lane;
  if (bits == 8) {
    const uint4 bytes = *reinterpret_cast<const uint4*>(own);
    const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t pair = words[i >> 1] >> (16 * (i & 1));
      const int first = static_cast<int>(pair & 255u), second = static_cast<int>(pair >> 8 & 255u);
      out.word[i >> 1][i & 1] =
          PackHalves(static_cast<float>(first - 128), static_cast<float>(second - 128));
    }
  } else if (bits == 4) {
    const uint2 bytes = *reinterpret_cast<const uint2*>(own);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t four = i < 4 ? bytes.x : bytes.y;
      out.word[i >> 1][i & 1] = tables[four >> (8 * (i & 3)) & 255u];
    }
  } else if (bits == 2) {
    const uint32_t bytes = *reinterpret_cast<const uint32_t*>(own);
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      const uint32_t chain = tables[bytes >> (8 * tile) & 255u];
      out.word[tile][0] = chain;
      out.word[tile][1] = ChainPair(chain, 1);
    }
  } else if (bits == 1) {
    const uint32_t bytes = *reinterpret_cast<const uint16_t*>(own);
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const uint2 chains = reinterpret_cast<const uint2*>(tables)[bytes >> (8 * pair) & 255u];
      out.word[2 * pair][0] = chains.x;
      out.word[2 * pair][1] = ChainPair(chains.x, 1);
      out.word[2 * pair + 1][0] = chains.y;
      out.word[2 * pair + 1][1] = ChainPair(chains.y, 1);
    }
  }
  return out;
}

// What a step of the transform takes of values of a group of the coder: high and, with two terms,
// low term.
template <int kHeadSize, Side kSide, int kTerms>
__device__ void FeedWords(const std::byte* coder, int group, int lane, float (&v)[kLaneValues],
                          GroupWords (&terms)[kTerms]) {
  constexpr CoderLayout kLayout{kHeadSize};
  const float* feeds = At<float>(coder, kLayout.Feed()) + kGroupChannels * group;
  const float feed[2] = {feeds[ComponentOf(kSide, lane, 0)], feeds[ComponentOf(kSide, lane, 1)]};
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
