// Jobs and headers of whole slabs, made on the device out of a few words per block.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/page_job.h"
#include "kernels/device.h"
#include "kernels/params.h"
#include "kernels/slab_header.h"

namespace fq {

// One block of a launch; lies in device memory.
struct SlabBlock {
  std::byte* primary = nullptr;     // extent
  std::byte* refinement = nullptr;  // or null
  int32_t chunks[kMaxChunks] = {};
  int32_t first_token = 0;
  int32_t rows = 0;  // of its first layer, index into RowSets::sets; other layers follow
  int32_t flag = 0;  // index into PageJobs::broken
  uint8_t tokens = kBlockTokens;
  uint8_t sink = 0;
};

// The pages of a shape; the arrays are device memory.
struct SlabPages {
  int32_t layers = 1, heads = 1;
  int32_t first_coder = 0;                  // of the first layer and head
  int32_t layer_coders = 1;                 // from one layer to the next
  const uint64_t* primary_offsets[2] = {};  // [sink] -> [pages], in the extent
  const uint64_t* refinement_offsets[2] = {};

  int32_t pages() const { return layers * heads; }
};

// Queues the making of jobs [pages.pages() * count] out of blocks [count], sorted by coder.
// Internal with the name of the CUDA call that failed.
absl::Status MakeSlabJobs(const SlabPages& pages, const SlabBlock* blocks, int count, PageJob* jobs,
                          cudaStream_t stream);

// An extent's begin: what it is or shall be.
struct SlabHead {
  std::byte* extent = nullptr;
  uint64_t pages_offset = 0;  // zero bytes end there
  uint64_t padding_offset = 0;
  int64_t flag = 0;
  SlabHeader header = {};
};

// Queue the writing of header and padding of extents [count], or their comparison, which sets
// broken[flag] to kBrokenHead where a byte differs. `heads` is device memory.
inline constexpr uint8_t kBrokenHead = 4;
absl::Status WriteSlabHeads(const SlabHead* heads, int count, cudaStream_t stream);
absl::Status CheckSlabHeads(const SlabHead* heads, int count, uint8_t* broken, cudaStream_t stream);

// Queues the copies of parts [count], an array in device memory; their `host` is pinned.
absl::Status FetchParts(const DeviceFetch* parts, int count, cudaStream_t stream);

}  // namespace fq
