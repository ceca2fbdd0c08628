#include "kernels/cuda/decode_pages.h"

#include "absl/strings/str_cat.h"
#include "kernels/codec/page_layout.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/decode_coded.cuh"
#include "kernels/cuda/decode_rows.cuh"
#include "kernels/cuda/decode_runs.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/page_rows.cuh"
#include "kernels/cuda/plain_pages.h"
#include "kernels/cuda/verify_pages.h"

namespace fq {
namespace {

// A thread block decodes one side of one page.
struct DecodeParams {
  PageJobs jobs;
  RowSets rows;
  const std::byte* coders;
};

template <int kHeadSize, int kTerms, Side kSide>
__device__ void DecodeBaseSide(const DecodeSide& side, const RowTarget& target) {
  constexpr CoderLayout kLayout{kHeadSize};
  CopySide<kHeadSize>(side);
  __syncthreads();
  if constexpr (kTerms > 0) {
    DecodeToRows<kHeadSize, kSide, kTerms>(side, target);
  } else {
    DecodeToCoded<kHeadSize, kSide>(side, target);
  }
  if (target.begin > 0) {
    const int codes = *At<uint32_t>(side.coder, kLayout.PageBytes(0));
    DecodeSinkRows(kSide, kHeadSize, side.job.primary + codes, target.begin, target.dtype,
                   target.base, target.offsets);
  }
}

// Blocks [0, count) decode K, the others V: to rows with kTerms terms of the matrix, or the coded
// domain.
template <int kHeadSize, int kTerms>
__global__ void __launch_bounds__(kDecodeThreads, kTerms == 0 ? 7 : 4)
    DecodeBasePages(DecodeParams p) {
  constexpr CoderLayout kLayout{kHeadSize};
  FQ_DYNAMIC_SHARED(memory);
  auto* shared = reinterpret_cast<DecodeShared*>(memory);
  const bool is_key = static_cast<int>(blockIdx.x) < p.jobs.count;
  const int index = static_cast<int>(blockIdx.x) - (is_key ? 0 : p.jobs.count);
  const PageJob job = p.jobs.jobs[index];
  if (job.broken != 0) return;
  const DecodeSide side{
      job,
      p.coders + (2 * static_cast<size_t>(job.coder) + (is_key ? 0 : 1)) * kLayout.Bytes(),
      reinterpret_cast<std::byte*>(memory),
      {kHeadSize, p.jobs.refined ? 2 : 1},
      job.refinement != nullptr,
      static_cast<int>(threadIdx.x) & 31};
  const PagedRows& rows = p.rows.sets[job.rows];
  FillRowOffsets(rows, job, shared->offsets);
  const RowTarget target{p.rows.dtype, static_cast<std::byte*>(is_key ? rows.k : rows.v),
                         shared->offsets, SinkEnd(job), job.tokens};
  if (is_key) {
    DecodeBaseSide<kHeadSize, kTerms, Side::kKey>(side, target);
  } else {
    DecodeBaseSide<kHeadSize, kTerms, Side::kValue>(side, target);
  }
}

// Runs of pages to rows of 16 bits.
template <int kHeadSize, int kParts>
__global__ void __launch_bounds__(RunShape<kHeadSize>::kThreads, kParts == 1 ? 4 : 3)
    DecodePageRuns(DecodeParams p) {
  DecodeRun<kHeadSize, kParts>(PageRuns{p.jobs.count}.At(static_cast<int>(blockIdx.x)), p.jobs,
                               p.rows, p.coders);
}

template <int kHeadSize, int kParts>
cudaError_t LaunchRuns(const DecodeParams& params, cudaStream_t stream) {
  constexpr size_t kShared = RunShared<kHeadSize, kParts>::Bytes();
  static_assert(kShared <= kSharedLimit);
  return Launch(DecodePageRuns<kHeadSize, kParts>,
                {PageRuns{params.jobs.count}.Size(), RunShape<kHeadSize>::kThreads, kShared},
                stream, params);
}

template <int kHeadSize, int kTerms>
cudaError_t LaunchTerms(const DecodeParams& params, cudaStream_t stream) {
  const int parts = params.jobs.refined ? 2 : 1;
  const int coded = kPageTokens * CodedStride(kHeadSize, ElementBytes(params.rows.dtype));
  const int terms = parts < kTerms ? parts : kTerms;
  const Regions regions{kHeadSize, parts};
  return Launch(DecodeBasePages<kHeadSize, kTerms>,
                {2 * params.jobs.count, kDecodeThreads,
                 static_cast<size_t>(regions.Values() +
                                     (kTerms == 0 ? coded : terms * TermBytes(kHeadSize)))},
                stream, params);
}

template <int kHeadSize>
cudaError_t LaunchDecode(Domain domain, const DecodeParams& params, cudaStream_t stream) {
  if (domain == Domain::kCoded) return LaunchTerms<kHeadSize, 0>(params, stream);
  if (params.rows.dtype == DType::kF32) return LaunchTerms<kHeadSize, 2>(params, stream);
  if constexpr (kHeadSize <= 128) {  // the matrix fits registers
    return params.jobs.refined ? LaunchRuns<kHeadSize, 2>(params, stream)
                               : LaunchRuns<kHeadSize, 1>(params, stream);
  } else {
    return LaunchTerms<kHeadSize, 1>(params, stream);
  }
}

cudaError_t LaunchDecodeBase(const DecodeOptions& options, const DecodeParams& params,
                             cudaStream_t stream) {
  switch (options.head_size) {
    case 64:
      return LaunchDecode<64>(options.domain, params, stream);
    case 96:
      return LaunchDecode<96>(options.domain, params, stream);
    case 128:
      return LaunchDecode<128>(options.domain, params, stream);
    default:
      return LaunchDecode<256>(options.domain, params, stream);
  }
}

}  // namespace

absl::Status DecodePages(const DecodeOptions& options, const CoderTables* coders,
                         const PageJobs& jobs, const RowSets& rows, cudaStream_t stream) {
  if (!IsHeadSize(options.head_size)) {
    return absl::InvalidArgumentError(
        absl::StrCat("head_size is ", options.head_size, ", not 64, 96, 128 or 256"));
  }
  if (jobs.count == 0) return absl::OkStatus();
  if (options.kind != PageKind::kBase) {
    return DecodePlainPages(options.kind, options.head_size, jobs, rows, stream);
  }
  if (jobs.checked) {
    FQ_RETURN_IF_CUDA_ERROR(VerifyBasePages(*coders, jobs, stream));
  }
  const DecodeParams params{jobs, rows, coders->data()};
  return CudaStatus(LaunchDecodeBase(options, params, stream), "DecodeBasePages");
}

}  // namespace fq
