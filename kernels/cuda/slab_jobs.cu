#include "kernels/cuda/slab_jobs.h"

#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.cuh"

namespace fq {
namespace {

constexpr int kJobThreads = 256, kHeadThreads = 32, kFetchThreads = 256;

struct JobParams {
  SlabPages pages;
  const SlabBlock* blocks;
  int count;  // of blocks
  PageJob* jobs;
};

// A thread makes one job; the blocks of a page are neighbours.
__global__ void __launch_bounds__(kJobThreads) MakeJobs(JobParams p) {
  const int index = static_cast<int>(blockIdx.x) * kJobThreads + static_cast<int>(threadIdx.x);
  const int page = index / p.count;
  if (page >= p.pages.layers * p.pages.heads) return;
  const SlabBlock& block = p.blocks[index - page * p.count];
  const int layer = page / p.pages.heads, head = page - layer * p.pages.heads;
  const bool sink = block.sink != 0;
  PageJob job;
  job.primary =
      block.primary + (sink ? p.pages.primary_offsets[1] : p.pages.primary_offsets[0])[page];
  job.primary_checksum = reinterpret_cast<uint64_t*>(block.primary + sizeof(SlabHeader)) + page;
  if (block.refinement != nullptr) {
    job.refinement = block.refinement +
                     (sink ? p.pages.refinement_offsets[1] : p.pages.refinement_offsets[0])[page];
    job.refinement_checksum =
        reinterpret_cast<uint64_t*>(block.refinement + sizeof(SlabHeader)) + page;
  }
  job.blocks = block.chunks;
  job.first_token = block.first_token;
  job.coder = p.pages.first_coder + layer * p.pages.layer_coders + head;
  job.rows = block.rows + layer;
  job.flag = block.flag;
  job.head = static_cast<int16_t>(head);
  job.tokens = block.tokens;
  job.sink = sink ? 1 : 0;
  p.jobs[index] = job;
}

struct HeadParams {
  const SlabHead* heads;
  uint8_t* broken;  // null: write
};

// A warp works on one extent.
__global__ void __launch_bounds__(kHeadThreads) WriteHeads(HeadParams p) {
  const SlabHead& head = p.heads[blockIdx.x];
  const int lane = static_cast<int>(threadIdx.x);
  reinterpret_cast<uint32_t*>(head.extent)[lane] =
      reinterpret_cast<const uint32_t*>(&head.header)[lane];
  for (uint64_t i = head.padding_offset + lane; i < head.pages_offset; i += kHeadThreads) {
    head.extent[i] = std::byte{0};
  }
}

__global__ void __launch_bounds__(kHeadThreads) CheckHeads(HeadParams p) {
  const SlabHead& head = p.heads[blockIdx.x];
  const int lane = static_cast<int>(threadIdx.x);
  bool differs = reinterpret_cast<const uint32_t*>(head.extent)[lane] !=
                 reinterpret_cast<const uint32_t*>(&head.header)[lane];
  for (uint64_t i = head.padding_offset + lane; i < head.pages_offset; i += kHeadThreads) {
    differs |= head.extent[i] != std::byte{0};
  }
  if (Ballot(differs) != 0 && lane == 0) p.broken[head.flag] = kBrokenHead;
}

struct FetchParams {
  const DeviceFetch* parts;
};

// A thread block copies one part: words where all of it is aligned to them, else bytes.
template <typename Word>
__device__ void CopyRows(const DeviceFetch& part) {
  const uint32_t row_words = part.row_bytes / sizeof(Word);
  for (uint32_t i = threadIdx.x; i < row_words * part.rows; i += kFetchThreads) {
    const uint32_t row = i / row_words;
    reinterpret_cast<Word*>(part.host)[i] =
        reinterpret_cast<const Word*>(part.device + row * part.stride_bytes)[i - row * row_words];
  }
}

__global__ void __launch_bounds__(kFetchThreads) CopyParts(FetchParams p) {
  const DeviceFetch& part = p.parts[blockIdx.x];
  const uint64_t bits =
      reinterpret_cast<uint64_t>(part.device) | part.stride_bytes | part.row_bytes;
  if (bits % sizeof(uint4) == 0) {
    CopyRows<uint4>(part);
  } else {
    CopyRows<uint8_t>(part);
  }
}

static_assert(sizeof(SlabHeader) == kHeadThreads * sizeof(uint32_t));

}  // namespace

absl::Status MakeSlabJobs(const SlabPages& pages, const SlabBlock* blocks, int count, PageJob* jobs,
                          cudaStream_t stream) {
  const int grid = (pages.pages() * count + kJobThreads - 1) / kJobThreads;
  return CudaStatus(
      Launch(MakeJobs, {grid, kJobThreads}, stream, JobParams{pages, blocks, count, jobs}),
      "MakeJobs");
}

absl::Status WriteSlabHeads(const SlabHead* heads, int count, cudaStream_t stream) {
  return CudaStatus(Launch(WriteHeads, {count, kHeadThreads}, stream, HeadParams{heads, nullptr}),
                    "WriteHeads");
}

absl::Status FetchParts(const DeviceFetch* parts, int count, cudaStream_t stream) {
  return CudaStatus(Launch(CopyParts, {count, kFetchThreads}, stream, FetchParams{parts}),
                    "CopyParts");
}

absl::Status CheckSlabHeads(const SlabHead* heads, int count, uint8_t* broken,
                            cudaStream_t stream) {
  return CudaStatus(Launch(CheckHeads, {count, kHeadThreads}, stream, HeadParams{heads, broken}),
                    "CheckHeads");
}

}  // namespace fq
