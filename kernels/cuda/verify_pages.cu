#include "kernels/cuda/verify_pages.h"

#include "kernels/codec/checksum.h"
#include "kernels/codec/page_layout.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp_sum.cuh"

namespace fq {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr int kLoadsAhead = 4;  // of 16 bytes a lane

struct VerifyParams {
  PageJobs jobs;
  const std::byte* coders;
  int head_bytes;     // of the two coders of a head
  int page_bytes[2];  // where the K coder holds those of [part]
  int record_bytes;   // of a sink page
};

// By a warp; every lane gets it.
__device__ uint64_t WarpChecksum(const std::byte* page, int bytes, int lane) {
  const uint64_t sum = WarpSum<kLoadsAhead>(
      page, bytes / 16 * 2, lane, [](int at, uint64_t word) { return ChecksumWord(at, word); });
  return ChecksumFinish(sum, bytes);
}

__global__ void __launch_bounds__(kThreads) VerifyPagesOfBase(VerifyParams p) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int index = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (index >= p.jobs.count) return;
  PageJob& job = p.jobs.jobs[index];
  const std::byte* coder = p.coders + static_cast<size_t>(job.coder) * p.head_bytes;
  const auto bytes = [&](int part) {
    return static_cast<int>(*reinterpret_cast<const uint32_t*>(coder + p.page_bytes[part]));
  };
  int broken = 0;
  if (job.primary_checksum != nullptr) {
    const int length = bytes(0) + (job.sink != 0 ? p.record_bytes : 0);
    broken = WarpChecksum(job.primary, length, lane) != *job.primary_checksum ? 1 : 0;
  }
  if (job.refinement_checksum != nullptr && job.refinement != nullptr) {
    const uint64_t found = WarpChecksum(job.refinement, bytes(1), lane);
    broken |= found != *job.refinement_checksum ? 2 : 0;
  }
  if (lane != 0) return;
  job.broken = static_cast<uint8_t>(broken);
  if (broken != 0 && p.jobs.broken != nullptr) p.jobs.broken[job.flag] = job.broken;
}

}  // namespace

cudaError_t VerifyBasePages(const CoderTables& coders, const PageJobs& jobs, cudaStream_t stream) {
  const CoderLayout layout{coders.head_size()};
  const VerifyParams params{jobs,
                            coders.data(),
                            static_cast<int>(2 * layout.Bytes()),
                            {layout.PageBytes(0), layout.PageBytes(1)},
                            static_cast<int>(SinkRecordBytes(coders.head_size()))};
  return Launch(VerifyPagesOfBase, {(jobs.count + kWarps - 1) / kWarps, kThreads}, stream, params);
}

}  // namespace fq
