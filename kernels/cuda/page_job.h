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
  DType dtype = DType::kF16;
};

// One page: 64 tokens of one kv head.
struct PageJob {
  std::byte* primary = nullptr;     // bytes of the page (FORMAT.md section 1), a multiple of 16
  std::byte* refinement = nullptr;  // or null
  const int32_t* blocks = nullptr;  // the engine's blocks that hold the page's tokens, in order
  int32_t first_token = 0;          // of the page, in blocks[0]
  int32_t coder = 0;                // layer * kv_heads + head of the codec set
  int16_t head = 0;                 // in PagedRows
  uint8_t tokens = kBlockTokens;    // 1..64
  uint8_t sink = 0;                 // 1: the page ends with a sink record
};

// The pages of one launch. Consecutive jobs of one `coder` share its matrices in the caches: sort
// by it.
struct PageJobs {
  const PageJob* jobs = nullptr;  // [count], device memory
  int count = 0;
  bool refined = true;  // false promises that no job has a refinement: needs less shared memory
  // [count] each or null, device memory: checksums of the pages (FORMAT.md section 3). Encode
  // writes them; decode compares, writes no row of a page that differs and sets `broken`.
  uint64_t* primary_checksums = nullptr;
  uint64_t* refinement_checksums = nullptr;
  // [count] or null; decode: 0, or 1 where the primary page and 2 where the refinement differs.
  uint8_t* broken = nullptr;
};

}  // namespace fq
