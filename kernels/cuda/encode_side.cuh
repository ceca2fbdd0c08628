// What the parts of the encoder share: the thread block's memory, and the side of a page that it
// encodes.
#pragma once

#include "kernels/cuda/coder_layout.h"
#include "kernels/cuda/nearest_octet.cuh"
#include "kernels/cuda/page_job.h"
#include "kernels/cuda/warp.cuh"

namespace fq {

// Start of shared memory. Behind it: the rows, then SearchTables [parts], then an OctetScratch for
// each warp.
struct EncodeShared {
  PageJob job;
  int64_t offsets[kPageTokens];    // of the rows
  uint8_t classes[2][kMaxGroups];  // [part]
  uint16_t starts[2][kMaxGroups];  // of the codes of a group in the page
  int next_task;                   // counts the tasks that a warp has taken
  float row_unit;                  // what 1 of the rows behind is worth
  const std::byte* lists;          // of the coder's base and refinement, or null
};
static_assert(sizeof(EncodeShared) % 16 == 0 && sizeof(SearchTables) % 16 == 0);

// The thread block's. Found anew where it is used: a pointer to shared memory that goes through a
// struct in local memory loses its address space (nvcc 13.0).
__device__ inline EncodeShared& Shared() {
  FQ_DYNAMIC_SHARED(memory);
  return *reinterpret_cast<EncodeShared*>(memory);
}

// Of a row of FP16 in shared memory; what is added keeps banks apart.
FQ_HD constexpr int RowBytes(int head_size) { return 2 * head_size + 16; }

// One side of a page and its coder.
struct EncodeSide {
  const std::byte* coder;
  int kv;     // 0 = K, 1 = V
  int parts;  // that the launch has room for
  int warp, lane;

  __device__ Side side() const { return kv == 0 ? Side::kKey : Side::kValue; }
};

template <int kHeadSize>
__device__ std::byte* SharedRow(int token) {
  return reinterpret_cast<std::byte*>(&Shared() + 1) + token * RowBytes(kHeadSize);
}

template <int kHeadSize>
__device__ SearchTables& Tables(int part) {
  return reinterpret_cast<SearchTables*>(SharedRow<kHeadSize>(kPageTokens))[part];
}

template <int kHeadSize>
__device__ OctetScratch& Octets(const EncodeSide& side) {
  return reinterpret_cast<OctetScratch*>(&Tables<kHeadSize>(side.parts))[side.warp];
}

template <typename T>
__device__ const T* At(const std::byte* base, int offset) {
  return reinterpret_cast<const T*>(base + offset);
}

}  // namespace fq
