#include "kernels/cuda/encode_pages.h"

#include "absl/strings/str_cat.h"
#include "kernels/codec/page_layout.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/encode_groups.cuh"
#include "kernels/cuda/encode_rows.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/page_rows.cuh"
#include "kernels/cuda/plain_pages.h"

namespace fq {
namespace {

constexpr int kMaxWarps = 8;
constexpr int kChecksumThreads = 128;
constexpr int kFewPages = 128;

// A thread block encodes one side of one page. Its warps take turns in the pairs of groups.
struct EncodeParams {
  PageJobs jobs;
  RowSets rows;
  const std::byte* coders;
  const std::byte* lists;  // [coder][2][ListBytes()], or null
};

// The number of a task that no other warp has.
__device__ int TakeTask(int lane) {
  const int task = lane == 0 ? FetchAdd(&Shared().next_task, 1) : 0;
  return FromLane(task, 0);
}

// From the last pair on: the long searches of the low classes come before the short ones.
template <int kHeadSize>
__device__ void EncodePairs(const EncodeSide& side) {
  constexpr int kPairs = kHeadSize / kGroupChannels / 2;
  for (int task = TakeTask(side.lane); task < kPairs; task = TakeTask(side.lane)) {
    EncodePair<kHeadSize>(side, kPairs - 1 - task);
  }
}

// Begins to copy the search tables of a part.
template <int kHeadSize>
__device__ void CopyTables(const EncodeSide& side, int part, int threads) {
  constexpr CoderLayout kLayout{kHeadSize};
  constexpr int kChunks = static_cast<int>(sizeof(SearchTables) / 16);
  const uint4* from = At<uint4>(side.coder, kLayout.Search(part));
  const uint32_t to = SharedAddress(&Tables<kHeadSize>(part));
  for (int i = static_cast<int>(threadIdx.x); i < kChunks; i += threads) {
    BeginCopy(from + i, to + 16 * i);
  }
}

// Brings the block's job, and what its coder says about groups, into shared memory.
template <int kHeadSize>
__device__ void FillShared(const PageJob& job, const std::byte* coder, const std::byte* lists,
                           DType dtype) {
  constexpr CoderLayout kLayout{kHeadSize};
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kHeadSize / kGroupChannels) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      Shared().classes[part][thread] = At<uint8_t>(coder, kLayout.Classes(part))[thread];
      Shared().starts[part][thread] = At<uint16_t>(coder, kLayout.Starts(part))[thread];
    }
  }
  if (thread == 0) {
    Shared().job = job;
    Shared().next_task = 0;
    Shared().lists = lists;
    Shared().row_unit = dtype == DType::kF16 ? 1.0f : At<float>(coder, kLayout.RowScale())[1];
  }
}

// Blocks [0, count) encode K, the others V.
template <int kHeadSize>
__global__ void __launch_bounds__(32 * kMaxWarps, 2) EncodeBasePages(EncodeParams p) {
  constexpr CoderLayout kLayout{kHeadSize};
  const int kv = static_cast<int>(blockIdx.x) < p.jobs.count ? 0 : 1;
  const PageJob& job = p.jobs.jobs[static_cast<int>(blockIdx.x) - kv * p.jobs.count];
  const size_t coder = 2 * static_cast<size_t>(job.coder) + kv;
  const EncodeSide side{p.coders + coder * kLayout.Bytes(), kv, p.jobs.refined ? 2 : 1,
                        static_cast<int>(threadIdx.x) / 32, static_cast<int>(threadIdx.x) & 31};
  const int threads = static_cast<int>(blockDim.x);
  const PagedRows& rows = p.rows.sets[job.rows];
  for (int part = 0; part < (job.refinement == nullptr ? 1 : 2); ++part) {
    CopyTables<kHeadSize>(side, part, threads);
  }
  FillRowOffsets(rows, job, Shared().offsets);
  FillShared<kHeadSize>(job, side.coder,
                        p.lists == nullptr ? nullptr : p.lists + 2 * coder * ListBytes(),
                        p.rows.dtype);
  __syncthreads();
  BringRows<kHeadSize>(side, p.rows.dtype, static_cast<const std::byte*>(kv == 0 ? rows.k : rows.v),
                       threads);
  if (job.sink != 0 && kv == 0) {
    EncodeSinkRows(kHeadSize, p.rows.dtype, rows, job, Shared().offsets,
                   job.primary + *At<uint32_t>(side.coder, kLayout.PageBytes(0)));
  }
  __syncthreads();
  EncodePairs<kHeadSize>(side);
}

// Checksums of pages that have been written; a thread block does those of a page.
template <int kHeadSize>
__global__ void __launch_bounds__(kChecksumThreads) SumBasePages(EncodeParams p) {
  constexpr CoderLayout kLayout{kHeadSize};
  FQ_DYNAMIC_SHARED(memory);
  const PageJob& job = p.jobs.jobs[blockIdx.x];
  const std::byte* coder = p.coders + 2 * static_cast<size_t>(job.coder) * kLayout.Bytes();
  const int record = job.sink != 0 ? static_cast<int>(SinkRecordBytes(kHeadSize)) : 0;
  WriteChecksums(job, *At<uint32_t>(coder, kLayout.PageBytes(0)) + record,
                 *At<uint32_t>(coder, kLayout.PageBytes(1)), reinterpret_cast<uint64_t*>(memory));
}

// Many pages are best served by small blocks, of which one always has work; a few pages are done
// sooner by more warps a side.
int WarpsFor(int count) { return count > kFewPages ? kMaxWarps / 2 : kMaxWarps; }

template <int kHeadSize>
cudaError_t LaunchEncode(const EncodeParams& params, cudaStream_t stream) {
  constexpr size_t kFixed = sizeof(EncodeShared) + kPageTokens * RowBytes(kHeadSize);
  static_assert(kFixed + 2 * sizeof(SearchTables) + kMaxWarps * sizeof(OctetScratch) <=
                kSharedLimit);
  const int warps = WarpsFor(params.jobs.count);
  const size_t shared =
      kFixed + (params.jobs.refined ? 2 : 1) * sizeof(SearchTables) + warps * sizeof(OctetScratch);
  const cudaError_t error = Launch(EncodeBasePages<kHeadSize>,
                                   {2 * params.jobs.count, 32 * warps, shared}, stream, params);
  if (error != cudaSuccess) return error;
  if (!params.jobs.checked) return cudaSuccess;
  constexpr size_t kScratch = 32 * sizeof(uint64_t);
  return Launch(SumBasePages<kHeadSize>, {params.jobs.count, kChecksumThreads, kScratch}, stream,
                params);
}

cudaError_t LaunchEncodeBase(int head_size, const EncodeParams& params, cudaStream_t stream) {
  switch (head_size) {
    case 64:
      return LaunchEncode<64>(params, stream);
    case 96:
      return LaunchEncode<96>(params, stream);
    case 128:
      return LaunchEncode<128>(params, stream);
    default:
      return LaunchEncode<256>(params, stream);
  }
}

}  // namespace

absl::Status EncodePages(PageKind kind, int head_size, const CoderTables* coders,
                         const PageJobs& jobs, const RowSets& rows, cudaStream_t stream) {
  if (!IsHeadSize(head_size)) {
    return absl::InvalidArgumentError(
        absl::StrCat("head_size is ", head_size, ", not 64, 96, 128 or 256"));
  }
  if (jobs.count == 0) return absl::OkStatus();
  if (kind != PageKind::kBase) return EncodePlainPages(kind, head_size, jobs, rows, stream);
  const EncodeParams params{jobs, rows, coders->data(), coders->lists()};
  return CudaStatus(LaunchEncodeBase(head_size, params, stream), "EncodeBasePages");
}

}  // namespace fq
