#include "kernels/cuda/plain_pages.h"

#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/page_rows.cuh"
#include "kernels/cuda/universal_pages.h"

namespace fq {
namespace {

constexpr int kThreads = 256;

// A thread block works on one page.
struct PlainParams {
  PageJobs jobs;
  RowSets rows;
  int head_size;
};

// Start of shared memory.
struct PlainShared {
  int64_t offsets[kPageTokens];
  uint64_t scratch[32];
};

__device__ int ThreadIndex() { return static_cast<int>(threadIdx.x); }

__device__ std::byte* SideBase(const PagedRows& rows, Side side) {
  return static_cast<std::byte*>(side == Side::kKey ? rows.k : rows.v);
}

__device__ int ExactBytes(const PlainParams& p) {
  return static_cast<int>(ExactPageBytes(p.head_size, ElementBytes(p.rows.dtype)));
}

// Copies rows between the engine and the page, 16 bytes a step; rows that the page does not have
// become 0 in it.
template <bool kEncode>
__device__ void CopyExactRows(const PlainParams& p, const PagedRows& rows, const PageJob& job,
                              const int64_t* offsets) {
  const int element = ElementBytes(p.rows.dtype), chunks = p.head_size * element / 16;
  for (int i = ThreadIndex(); i < 2 * kPageTokens * chunks; i += kThreads) {
    const Side side = i < kPageTokens * chunks ? Side::kKey : Side::kValue;
    const int row = i / chunks % kPageTokens;
    auto* page = reinterpret_cast<uint4*>(job.primary) + i;
    if (row >= job.tokens) {
      if (kEncode) *page = make_uint4(0, 0, 0, 0);
      continue;
    }
    auto* own =
        reinterpret_cast<uint4*>(SideBase(rows, side) + element * offsets[row]) + i % chunks;
    if (kEncode) {
      *page = *own;
    } else {
      *own = *page;
    }
  }
}

__global__ void __launch_bounds__(kThreads) EncodeExactPages(PlainParams p) {
  FQ_DYNAMIC_SHARED(memory);
  auto* shared = reinterpret_cast<PlainShared*>(memory);
  const PageJob job = p.jobs.jobs[blockIdx.x];
  const PagedRows& rows = p.rows.sets[job.rows];
  FillRowOffsets(rows, job, shared->offsets);
  __syncthreads();
  CopyExactRows<true>(p, rows, job, shared->offsets);
  WriteChecksums(job, ExactBytes(p), 0, shared->scratch);
}

__global__ void __launch_bounds__(kThreads) DecodeExactPages(PlainParams p) {
  FQ_DYNAMIC_SHARED(memory);
  auto* shared = reinterpret_cast<PlainShared*>(memory);
  const PageJob job = p.jobs.jobs[blockIdx.x];
  const PagedRows& rows = p.rows.sets[job.rows];
  FillRowOffsets(rows, job, shared->offsets);
  if (!VerifyPages(p.jobs, job, ExactBytes(p), 0, shared->scratch)) return;
  __syncthreads();
  CopyExactRows<false>(p, rows, job, shared->offsets);
}

}  // namespace

absl::Status EncodePlainPages(PageKind kind, int head_size, const PageJobs& jobs,
                              const RowSets& rows, cudaStream_t stream) {
  if (kind == PageKind::kUniversal) {
    return CudaStatus(CodeUniversalPages(true, head_size, jobs, rows, stream),
                      "EncodeUniversalPages");
  }
  const LaunchShape shape{jobs.count, kThreads, sizeof(PlainShared)};
  return CudaStatus(Launch(EncodeExactPages, shape, stream, PlainParams{jobs, rows, head_size}),
                    "EncodeExactPages");
}

absl::Status DecodePlainPages(PageKind kind, int head_size, const PageJobs& jobs,
                              const RowSets& rows, cudaStream_t stream) {
  if (kind == PageKind::kUniversal) {
    return CudaStatus(CodeUniversalPages(false, head_size, jobs, rows, stream),
                      "DecodeUniversalPages");
  }
  const LaunchShape shape{jobs.count, kThreads, sizeof(PlainShared)};
  return CudaStatus(Launch(DecodeExactPages, shape, stream, PlainParams{jobs, rows, head_size}),
                    "DecodeExactPages");
}

}  // namespace fq
