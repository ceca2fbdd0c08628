// What a launch of the page kernels works on. Plain structs; the pointers are device memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/params.h"

namespace fq {

// Keys and values of one layer as an engine holds them on a device: blocks of `block_tokens`
// tokens. Element (block, token, head, channel) of K is at k[block * block_stride + token *
// token_stride + head * head_stride + channel], of V likewise. Strides count elements; a row starts
// at a multiple of 16 bytes.
struct PagedRows {
  void* k = nullptr;
  void* v = nullptr;
  int64_t block_stride = 0, token_stride = 0, head_stride = 0;
  int32_t block_tokens = kBlockTokens;
};

// The rows that the jobs of one launch name.
struct RowSets {
  const PagedRows* sets = nullptr;  // device memory
  DType dtype = DType::kF16;        // of all
};

// One page: 64 tokens of one kv head.
struct PageJob {
  std::byte* primary = nullptr;     // bytes of the page (FORMAT.md section 1), a multiple of 16
  std::byte* refinement = nullptr;  // or null
  // Of the two (FORMAT.md section 3), null where there is none. Encode writes them; decode compares
  // and writes no row of a page that differs.
  uint64_t* primary_checksum = nullptr;
  uint64_t* refinement_checksum = nullptr;
  const int32_t* blocks = nullptr;  // the engine's blocks that hold the page's tokens, in order
  int32_t first_token = 0;          // of the page, in blocks[0]
  int32_t coder = 0;                // layer * kv_heads + head of the codec set
  int32_t rows = 0;                 // index into RowSets::sets
  int32_t flag = 0;                 // index into PageJobs::broken
  int16_t head = 0;                 // in PagedRows
  uint8_t tokens = kBlockTokens;    // 1..64
  uint8_t sink = 0;                 // 1: the page ends with a sink record
  uint8_t broken = 0;               // decode's own: what it found (PageJobs::broken)
};

// The pages of one launch. Consecutive jobs of one `coder` share its matrices in the caches: sort
// by it.
struct PageJobs {
  PageJob* jobs = nullptr;  // [count], device memory
  int count = 0;
  bool refined = true;  // false promises that no job has a refinement: needs less shared memory
  bool checked = true;  // false promises that no job has a checksum: saves a launch
  // Or null. Decode sets a job's flag to 1 where its primary page differs, 2 where its refinement
  // does, 3 where both do; it never clears one. Jobs may share a flag.
  uint8_t* broken = nullptr;
};

}  // namespace fq
