// Codes of channel groups: the searches of all classes, base and refinement.
#pragma once

#include "kernels/cuda/encode_side.cuh"
#include "kernels/cuda/encode_transform.cuh"
#include "kernels/cuda/nearest_entry.cuh"
#include "kernels/cuda/nearest_octet.cuh"

namespace fq {

// Replaces the codes of bytes that found no list by what a look at all entries finds. Rare, so the
// values are moved on and the search is there once.
template <int kBits>
__device__ void FindLost(const SearchTables& tables, const float (&u)[kLaneValues], uint32_t lost,
                         int lane, uint64_t* codes) {
  constexpr int kValues = ValuesPerByte(kBits);
  float x[kLaneValues];
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) x[i] = u[i];
#pragma unroll 1
  for (int b = 0; b < kLaneValues / kValues; ++b) {
    const bool mine = (lost >> b & 1u) != 0;
    const int code = FoundOrNearestOfAll<kBits>(tables, mine, 0, x, lane);
    if (mine) {
      *codes = (*codes & ~(uint64_t{255} << (8 * b))) | static_cast<uint64_t>(code) << (8 * b);
    }
#pragma unroll
    for (int i = 0; i + kValues < kLaneValues; ++i) x[i] = x[i + kValues];
  }
}

// Codes of the classes 4 and 2; sets the bits of bytes without a list in `lost`.
template <int kBits>
__device__ uint64_t SearchLists(const SearchTables& tables, const std::byte* lists,
                                const SearchValues& x, uint32_t* lost) {
  constexpr int kValues = ValuesPerByte(kBits), kBytes = kLaneValues / kValues;
  CandidateList<kBits> candidates[kBytes];
#pragma unroll
  for (int b = 0; b < kBytes; ++b) candidates[b] = ListOf<kBits>(lists, x.value + kValues * b);
  uint64_t found = 0;
#pragma unroll
  for (int b = 0; b < kBytes; ++b) {
    *lost |= (candidates[b].words[0] == kNoList ? 1u : 0u) << b;
    found |= static_cast<uint64_t>(NearestOfList<kBits>(tables, candidates[b], x, b)) << (8 * b);
  }
  return found;
}

// Codes of class 1.
template <int kHeadSize>
__device__ uint64_t SearchOctets(const EncodeSide& side, const SearchTables& tables,
                                 const SearchValues& x) {
  OctetScratch* scratch = &Octets<kHeadSize>(side);
  uint32_t found = 0;
#pragma unroll 1
  for (int b = 0; b < 2; ++b) {
    uint32_t half[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) half[i] = b == 0 ? x.half[i] : x.half[4 + i];
    found |= NearestOctet(tables, half, side.lane, scratch) << (8 * b);
  }
  return found;
}

template <int kHeadSize, int kBits>
__device__ uint64_t SearchGroup(const EncodeSide& side, int part, const float (&u)[kLaneValues]) {
  constexpr int kBytes = kLaneValues / ValuesPerByte(kBits);
  const SearchTables& tables = Tables<kHeadSize>(part);
  const SearchValues x = SearchValuesOf(u);
  uint32_t lost = x.far ? (1u << kBytes) - 1 : 0;
  uint64_t found;
  if constexpr (kBits == 1) {
    found = SearchOctets<kHeadSize>(side, tables, x);
  } else {
    const std::byte* lists = Shared().lists;
    if (lists != nullptr) lists += ListOffset(part, kBits);
    found = SearchLists<kBits>(tables, lists, x, &lost);
  }
  if (Ballot(lost != 0) != 0) FindLost<kBits>(tables, u, lost, side.lane, &found);
  return found;
}

// Finds the codes of a group; replaces the values by what they decode to when a refinement follows.
template <int kHeadSize, int kBits>
__device__ uint64_t EncodeTableGroup(const EncodeSide& side, int part, float (&u)[kLaneValues]) {
  constexpr int kValues = ValuesPerByte(kBits);
  const uint64_t codes = SearchGroup<kHeadSize, kBits>(side, part, u);
  if (part == 1 || Shared().job.refinement == nullptr) return codes;
#pragma unroll
  for (int b = 0; b < kLaneValues / kValues; ++b) {
    float value[kValues];
    EntryOf<kBits>(Tables<kHeadSize>(0), static_cast<int>(codes >> (8 * b) & 255u), value);
#pragma unroll
    for (int v = 0; v < kValues; ++v) u[kValues * b + v] = value[v];
  }
  return codes;
}

// The 16 codes of class 8; replaces the values by what they decode to.
__device__ inline uint4 EncodeClass8(float (&u)[kLaneValues]) {
  constexpr float kInteger =
      12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
  uint32_t code[kLaneValues], words[4];
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) {
    const float steps = fminf(fmaxf(u[i] * kClass8InverseStep, -127.0f), 127.0f) + (kInteger + 128);
    code[i] = FloatBits(steps);
    u[i] = (steps - (kInteger + 128)) * kClass8Step;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words[i] = PickBytes(PickBytes(code[4 * i], code[4 * i + 1], 0x0040u),
                         PickBytes(code[4 * i + 2], code[4 * i + 3], 0x0040u), 0x5410u);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// Stores the codes of the lane's values. When a refinement follows, replaces the values by what
// they decode to.
template <int kHeadSize>
__device__ void EncodeGroup(const EncodeSide& side, int part, int bits, float (&u)[kLaneValues],
                            std::byte* codes) {
  std::byte* own = codes + 2 * bits * side.lane;
  if (bits == 8) {
    *reinterpret_cast<uint4*>(own) = EncodeClass8(u);
  } else if (bits == 4) {
    *reinterpret_cast<uint64_t*>(own) = EncodeTableGroup<kHeadSize, 4>(side, part, u);
  } else if (bits == 2) {
    *reinterpret_cast<uint32_t*>(own) =
        static_cast<uint32_t>(EncodeTableGroup<kHeadSize, 2>(side, part, u));
  } else if (bits == 1) {
    *reinterpret_cast<uint16_t*>(own) =
        static_cast<uint16_t>(EncodeTableGroup<kHeadSize, 1>(side, part, u));
  } else {
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) u[i] = 0.0f;
  }
}

// Codes of a group in the base and, where the job has one, in the refinement.
template <int kHeadSize>
__device__ void EncodeParts(const EncodeSide& side, const GroupPair& product, int group) {
  constexpr CoderLayout kLayout{kHeadSize};
  const float* sd = At<float>(side.coder, kLayout.Sd()) + kGroupChannels * group;
  float v[kLaneValues];
  TakeGroup(side, product, group, v);
#pragma unroll 1  // one body for base and refinement keeps the searches short
  for (int part = 0; part < 2; ++part) {
    std::byte* page = part == 0 ? Shared().job.primary : Shared().job.refinement;
    if (page == nullptr) return;
    if (part == 1) {
      float u[kLaneValues];
      TakeGroup(side, product, group, u);
#pragma unroll
      for (int i = 0; i < kLaneValues; ++i) {
        const float deviation = sd[ComponentOf(side.side(), side.lane, i)];
        v[i] = ScaledResidual(u[i], v[i], InverseDeviation(deviation));
      }
    }
    EncodeGroup<kHeadSize>(side, part, Shared().classes[part][group], v,
                           page + Shared().starts[part][group]);
  }
}

// Codes of two neighbouring groups, which share the steps of the transform.
template <int kHeadSize>
__device__ void EncodePair(const EncodeSide& side, int pair) {
  const auto& classes = Shared().classes;
  int used = classes[0][2 * pair] | classes[0][2 * pair + 1];
  if (Shared().job.refinement != nullptr) used |= classes[1][2 * pair] | classes[1][2 * pair + 1];
  if (used == 0) return;
  const GroupPair product = side.kv == 0 ? MultiplyForward<kHeadSize, Side::kKey>(side, pair)
                                         : MultiplyForward<kHeadSize, Side::kValue>(side, pair);
#pragma unroll 1
  for (int group = 2 * pair; group < 2 * pair + 2; ++group) {
    EncodeParts<kHeadSize>(side, product, group);
  }
}

}  // namespace fq
