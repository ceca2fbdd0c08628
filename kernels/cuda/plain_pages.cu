#include "kernels/cuda/plain_pages.h"

#include <cmath>

#include "kernels/codec/universal.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/page_rows.cuh"

namespace fq {
namespace {

constexpr int kThreads = 256;

// A thread block works on one page.
struct PlainParams {
  PageJobs jobs;
  RowSets rows;
  int head_size;
};

// Start of shared memory; universal pages have FP32 [head_size][64] of one side behind it.
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

__device__ int UniversalBytes(const PlainParams& p, const PageJob& job) {
  const size_t record = job.sink != 0 ? SinkRecordBytes(p.head_size) : 0;
  return static_cast<int>(UniversalPageBytes(p.head_size) + record);
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

// Orthonormal Walsh-Hadamard transform over the channels of every block, in place; the butterflies
// of the CPU in its order.
__device__ void Hadamard(int head_size, float* x) {
  const int block = HadamardBlock(head_size);
  const float orthonormal = 1.0f / sqrtf(static_cast<float>(block));
  for (int half = 1; half < block; half *= 2) {
    const float scale = 2 * half == block ? orthonormal : 1.0f;
    for (int i = ThreadIndex(); i < head_size / 2 * kPageTokens; i += kThreads) {
      const int pair = i / kPageTokens, channel = pair / half * 2 * half + pair % half;
      float* a = x + channel * kPageTokens + i % kPageTokens;
      float* b = a + half * kPageTokens;
      const Butterfly butterfly = HadamardButterfly(*a, *b, scale);
      *a = butterfly.sum;
      *b = butterfly.difference;
    }
    __syncthreads();
  }
}

// x [head_size][64] of one side, sanitised; rows that the page does not have are 0.
__device__ void LoadColumns(const PlainParams& p, const PagedRows& rows, const PageJob& job,
                            Side side, const int64_t* offsets, float* x) {
  const int chunks = p.head_size / 8;
  for (int i = ThreadIndex(); i < kPageTokens * chunks; i += kThreads) {
    const int token = i % kPageTokens, channel = i / kPageTokens * 8;
    float row[8] = {};
    if (token < job.tokens) {
      LoadChannels(p.rows.dtype, SideBase(rows, side), offsets[token] + channel, row);
    }
    for (int c = 0; c < 8; ++c) x[(channel + c) * kPageTokens + token] = Sanitised(row[c]);
  }
  __syncthreads();
}

// Stores the norms of the rows and divides the rows by them; a thread per token.
__device__ void Normalise(Side side, int head_size, float* x, std::byte* page) {
  const int token = ThreadIndex();
  if (token < kPageTokens) {
    float sum = 0.0f;
    for (int c = 0; c < head_size; ++c) {
      const float value = x[c * kPageTokens + token];
      sum += value * value;
    }
    const uint16_t norm = UniversalNorm(sum, head_size);
    *reinterpret_cast<uint16_t*>(page + UniversalNormOffset(side, token, head_size)) = norm;
    const float divisor = HalfToFloat(norm);
    for (int c = 0; c < head_size; ++c) x[c * kPageTokens + token] /= divisor;
  }
  __syncthreads();
}

__device__ std::byte* UniversalCodes(const PageJob& job, Side side, int head_size) {
  return job.primary + (side == Side::kKey ? 0 : UniversalCodeBytes(head_size));
}

// The value of x that sequence number `sequence` of group `group` stands for.
__device__ float& GroupValue(float* x, Side side, int group, int sequence) {
  const GroupPosition position = PositionOf(side, sequence);
  return x[(kGroupChannels * group + position.channel) * kPageTokens + position.token];
}

__global__ void __launch_bounds__(kThreads) EncodeUniversalPages(PlainParams p) {
  FQ_DYNAMIC_SHARED(memory);
  auto* shared = reinterpret_cast<PlainShared*>(memory);
  auto* x = reinterpret_cast<float*>(shared + 1);
  const PageJob job = p.jobs.jobs[blockIdx.x];
  const PagedRows& rows = p.rows.sets[job.rows];
  FillRowOffsets(rows, job, shared->offsets);
  __syncthreads();
  for (int i = 0; i < 2; ++i) {
    const Side side = i == 0 ? Side::kKey : Side::kValue;
    LoadColumns(p, rows, job, side, shared->offsets, x);
    Normalise(side, p.head_size, x, job.primary);
    Hadamard(p.head_size, x);
    std::byte* codes = UniversalCodes(job, side, p.head_size);
    for (int i = ThreadIndex(); i < p.head_size / kGroupChannels * kGroupPairs; i += kThreads) {
      const int group = i / kGroupPairs, first = 2 * (i % kGroupPairs);
      codes[i] = static_cast<std::byte>(NearestLevel(GroupValue(x, side, group, first)) |
                                        NearestLevel(GroupValue(x, side, group, first + 1)) << 4);
    }
    __syncthreads();
  }
  if (job.sink != 0) {
    EncodeSinkRows(p.head_size, p.rows.dtype, rows, job, shared->offsets,
                   job.primary + UniversalPageBytes(p.head_size));
  }
  WriteChecksums(job, UniversalBytes(p, job), 0, shared->scratch);
}

// Levels of one side to rows: x = norm * (H v).
__device__ void DecodeUniversalSide(const PlainParams& p, const PageJob& job, Side side, float* x) {
  constexpr LevelTable kTable = LloydMaxLevels();
  const std::byte* codes = UniversalCodes(job, side, p.head_size);
  for (int i = ThreadIndex(); i < p.head_size / kGroupChannels * kGroupPairs; i += kThreads) {
    const int group = i / kGroupPairs, first = 2 * (i % kGroupPairs);
    const int code = static_cast<int>(codes[i]);
    GroupValue(x, side, group, first) = kTable.level[code & 15];
    GroupValue(x, side, group, first + 1) = kTable.level[code >> 4];
  }
  __syncthreads();
  Hadamard(p.head_size, x);
  for (int i = ThreadIndex(); i < p.head_size * kPageTokens; i += kThreads) {
    const std::byte* norm = job.primary + UniversalNormOffset(side, i % kPageTokens, p.head_size);
    x[i] *= HalfToFloat(*reinterpret_cast<const uint16_t*>(norm));
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads) DecodeUniversalPages(PlainParams p) {
  FQ_DYNAMIC_SHARED(memory);
  auto* shared = reinterpret_cast<PlainShared*>(memory);
  auto* x = reinterpret_cast<float*>(shared + 1);
  const PageJob job = p.jobs.jobs[blockIdx.x];
  const PagedRows& rows = p.rows.sets[job.rows];
  FillRowOffsets(rows, job, shared->offsets);
  if (!VerifyPages(p.jobs, job, UniversalBytes(p, job), 0, shared->scratch)) return;
  __syncthreads();
  const int chunks = p.head_size / 8, begin = SinkEnd(job);
  for (int i = 0; i < 2; ++i) {
    const Side side = i == 0 ? Side::kKey : Side::kValue;
    DecodeUniversalSide(p, job, side, x);
    for (int i = ThreadIndex(); i < kPageTokens * chunks; i += kThreads) {
      const int token = i % kPageTokens, channel = i / kPageTokens * 8;
      if (token < begin || token >= job.tokens) continue;
      float row[8];
      for (int c = 0; c < 8; ++c) row[c] = x[(channel + c) * kPageTokens + token];
      StoreChannels(p.rows.dtype, SideBase(rows, side), shared->offsets[token] + channel, row);
    }
    DecodeSinkRows(side, p.head_size, job.primary + UniversalPageBytes(p.head_size), begin,
                   p.rows.dtype, SideBase(rows, side), shared->offsets);
    __syncthreads();
  }
}

absl::Status LaunchPlain(void (*kernel)(PlainParams), const char* name, bool columns,
                         const PlainParams& params, cudaStream_t stream) {
  const size_t shared =
      sizeof(PlainShared) + (columns ? sizeof(float) * kPageTokens * params.head_size : 0);
  return CudaStatus(Launch(kernel, {params.jobs.count, kThreads, shared}, stream, params), name);
}

}  // namespace

absl::Status EncodePlainPages(PageKind kind, int head_size, const PageJobs& jobs,
                              const RowSets& rows, cudaStream_t stream) {
  const PlainParams params{jobs, rows, head_size};
  return kind == PageKind::kExact
             ? LaunchPlain(EncodeExactPages, "EncodeExactPages", false, params, stream)
             : LaunchPlain(EncodeUniversalPages, "EncodeUniversalPages", true, params, stream);
}

absl::Status DecodePlainPages(PageKind kind, int head_size, const PageJobs& jobs,
                              const RowSets& rows, cudaStream_t stream) {
  const PlainParams params{jobs, rows, head_size};
  return kind == PageKind::kExact
             ? LaunchPlain(DecodeExactPages, "DecodeExactPages", false, params, stream)
             : LaunchPlain(DecodeUniversalPages, "DecodeUniversalPages", true, params, stream);
}

}  // namespace fq
