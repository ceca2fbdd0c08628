// What the parts of the decoder share: the thread block's memory, and the side of a page that it
// decodes.
#pragma once

#include "kernels/codec/page_layout.h"
#include "kernels/cuda/coder_layout.h"
#include "kernels/cuda/page_job.h"
#include "kernels/cuda/page_rows.cuh"
#include "kernels/cuda/warp.cuh"

namespace fq {

inline constexpr int kDecodeThreads = 128, kDecodeWarps = kDecodeThreads / 32;

// Start of shared memory; see Regions for what follows.
struct DecodeShared {
  int64_t offsets[kPageTokens];    // of the rows
  uint8_t classes[2][kMaxGroups];  // [part]
  uint16_t starts[2][kMaxGroups];  // of a group in the codes of its side
  uint32_t used;                   // bit i: group i has codes
  uint32_t unused[3];
};
static_assert(sizeof(DecodeShared) % 16 == 0);

FQ_HD constexpr int TermBytes(int head_size) { return kPageTokens * head_size * 2; }
// Of a row in the coded domain; what is added keeps banks apart.
FQ_HD constexpr int CodedStride(int head_size, int element) { return (head_size + 8) * element; }

// Codes come into shared memory all at once, where there is room for them.
FQ_HD constexpr int CodeBytes(int head_size) {
  return head_size < 256 ? kPageTokens * head_size : 0;
}

// Shared memory behind DecodeShared: lookups [parts][kPartWords], codes [parts] of the side, and
// the values of the coded domain: either as A fragments (tokens x components; FP16, one term or
// two) or as rows.
struct Regions {
  int head_size, parts;

  FQ_HD constexpr int Lookups(int part) const {
    return static_cast<int>(sizeof(DecodeShared)) + part * 4 * kPartWords;
  }
  FQ_HD constexpr int Codes(int part) const { return Lookups(parts) + part * CodeBytes(head_size); }
  FQ_HD constexpr int Values() const { return Codes(parts); }
};

// One side of a page and its coder.
struct DecodeSide {
  const PageJob& job;
  const std::byte* coder;
  std::byte* memory;  // shared
  Regions regions;
  bool refined;  // this page; the regions have room for what the launch may hold
  int lane;

  __device__ DecodeShared& shared() const { return *reinterpret_cast<DecodeShared*>(memory); }
  __device__ int bits(int part, int group) const { return shared().classes[part][group]; }
  __device__ const std::byte* codes(int part, int group) const {
    const int start = shared().starts[part][group];
    if (CodeBytes(regions.head_size) != 0) return memory + regions.Codes(part) + start;
    return (part == 0 ? job.primary : job.refinement) + start;
  }
  __device__ const uint32_t* lookups(int part) const {
    return reinterpret_cast<const uint32_t*>(memory + regions.Lookups(part));
  }
};

template <typename T>
__device__ const T* At(const std::byte* base, int offset) {
  return reinterpret_cast<const T*>(base + offset);
}

// Copies `bytes` bytes, a multiple of 16, into shared memory; by the whole thread block.
__device__ inline void CopyToShared(const std::byte* from, int bytes, std::byte* to) {
  for (int i = static_cast<int>(threadIdx.x); i < bytes / 16; i += kDecodeThreads) {
    reinterpret_cast<uint4*>(to)[i] = LoadConstant<uint4>(from + 16 * i);
  }
}

// Everything of the page's side that lies in device memory, but for the matrix.
template <int kHeadSize>
__device__ void CopySide(const DecodeSide& side) {
  constexpr CoderLayout kLayout{kHeadSize};
  constexpr int kGroups = kHeadSize / kGroupChannels;
  DecodeShared& shared = side.shared();
  const int thread = static_cast<int>(threadIdx.x);
  int used = 0;
  for (int part = 0; part < (side.refined ? 2 : 1); ++part) {
    const auto* classes = At<uint8_t>(side.coder, kLayout.Classes(part));
    const auto* starts = At<uint16_t>(side.coder, kLayout.Starts(part));
    CopyToShared(side.coder + kLayout.Tables(part), 4 * kPartWords,
                 side.memory + side.regions.Lookups(part));
    int begin = 0;
    if constexpr (CodeBytes(kHeadSize) != 0) {
      const std::byte* page = part == 0 ? side.job.primary : side.job.refinement;
      const int end = starts[kGroups - 1] + GroupBytes(classes[kGroups - 1]);
      begin = starts[0];
      CopyToShared(page + begin, end - begin, side.memory + side.regions.Codes(part));
    }
    if (thread < kGroups) {
      shared.classes[part][thread] = classes[thread];
      shared.starts[part][thread] = static_cast<uint16_t>(starts[thread] - begin);
      used |= classes[thread];
    }
  }
  if (thread < 32) {
    const uint32_t groups = Ballot(used != 0);
    if (thread == 0) shared.used = groups;
  }
}

// Where the rows of one side go.
struct RowTarget {
  DType dtype;
  std::byte* base;
  const int64_t* offsets;  // [64], shared memory
  int begin, end;          // tokens to write
};

}  // namespace fq
