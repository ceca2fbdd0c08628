#include "kernels/cuda/universal_pages.h"

#include "kernels/codec/universal.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/page_rows.cuh"
#include "kernels/cuda/universal_octets.cuh"

namespace fq {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;

// A thread block works on one page.
struct UniversalParams {
  PageJobs jobs;
  RowSets rows;
};

// Start of shared memory. The encoder has the rows of one side behind it and their codes behind
// those; the decoder the codes of the page, and rows of an octet for each warp.
struct UniversalShared {
  int64_t offsets[kPageTokens];
  uint64_t scratch[32];
  union {
    LevelCell cells[kLevelCells][kLevelCopies];  // encoder
    float2 levels[kTableEntries];                // decoder: of both values of a byte
  };
  int unusual;  // the rows hold NaN or numbers beyond the range
  int unused[3];
};
static_assert(sizeof(UniversalShared) % 16 == 0);

__device__ UniversalShared& Shared() {
  FQ_DYNAMIC_SHARED(memory);
  return *reinterpret_cast<UniversalShared*>(memory);
}
__device__ std::byte* Behind() { return reinterpret_cast<std::byte*>(&Shared() + 1); }
__device__ int ThreadIndex() { return static_cast<int>(threadIdx.x); }
__device__ int Lane() { return ThreadIndex() & 31; }

__device__ std::byte* SideBase(const PagedRows& rows, Side side) {
  return static_cast<std::byte*>(side == Side::kKey ? rows.k : rows.v);
}

// Where chunk `index` of 16 bytes lies in rows [tokens][head size].
struct RowChunk {
  int token, at;  // at: bytes into the row
};
template <int kHeadSize>
__device__ RowChunk ChunkOf(int index, int element) {
  constexpr int kHalfChunks = kHeadSize * 2 / 16;  // of a row of two-byte elements
  const int token = element == 2 ? index / kHalfChunks : index / (2 * kHalfChunks);
  return {token, 16 * index - token * kHeadSize * element};
}

template <int kHeadSize>
__device__ int PageBytesOf(const PageJob& job) {
  const size_t record = job.sink != 0 ? SinkRecordBytes(kHeadSize) : 0;
  return static_cast<int>(UniversalPageBytes(kHeadSize) + record);
}

// Begins to copy the rows of a side; those that the page does not have are 0.
template <int kHeadSize>
__device__ void BeginRows(const PageJob& job, DType dtype, const std::byte* base) {
  const int element = ElementBytes(dtype);
#pragma unroll 4
  for (int i = ThreadIndex(); i < kPageTokens * kHeadSize * element / 16; i += kThreads) {
    const RowChunk chunk = ChunkOf<kHeadSize>(i, element);
    std::byte* to = Behind() + chunk.token * OctetRowBytes(kHeadSize, element) + chunk.at;
    if (chunk.token < job.tokens) {
      BeginCopy(base + element * Shared().offsets[chunk.token] + chunk.at, SharedAddress(to));
    } else {
      *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
    }
  }
}

// The sum of the squares of a row in the order of its channels.
template <int kHeadSize, bool kUnusual>
__device__ float SumOfSquares(DType dtype, const std::byte* row) {
  float sum = 0.0f;
#pragma unroll 2
  for (int channel = 0; channel < kHeadSize; channel += 8) {
    float x[8];
    LoadChannels(dtype, row, channel, x);
#pragma unroll
    for (float value : x) {
      if (kUnusual) value = Sanitised(value);
      sum += value * value;
    }
  }
  return sum;
}

// Stores the norms of the rows of a side, and notes whether all of them are numbers within the
// range; a thread a token.
template <int kHeadSize>
__device__ void StoreNorms(Side side, DType dtype, std::byte* page) {
  const int token = ThreadIndex();
  if (token >= kPageTokens) return;
  const std::byte* row = Behind() + token * OctetRowBytes(kHeadSize, ElementBytes(dtype));
  float sum = SumOfSquares<kHeadSize, false>(dtype, row);
  if (!(sum <= kInputLimit * kInputLimit)) {
    Shared().unusual = 1;
    sum = SumOfSquares<kHeadSize, true>(dtype, row);
  }
  *reinterpret_cast<uint16_t*>(page + UniversalNormOffset(side, token, kHeadSize)) =
      UniversalNorm(sum, kHeadSize);
}

// An octet of rows in shared memory.
template <int kHeadSize, Side kSide>
__device__ void LoadOctet(DType dtype, int octet, Octet<kHeadSize>* x) {
  const int lane = Lane(), g = lane >> 2, t = lane & 3;
  const int stride = OctetRowBytes(kHeadSize, ElementBytes(dtype));
  const std::byte* rows = Behind() + kOctetTokens * octet * stride;
  if (dtype == DType::kF32) {
#pragma unroll
    for (int i = 0; i < Octet<kHeadSize>::kGroups; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int token = kSide == Side::kKey ? g : 2 * t + e;
        const int channel = kGroupChannels * i + (kSide == Side::kKey ? 2 * t + e : g);
        x->value[i][e] = reinterpret_cast<const float*>(rows + token * stride)[channel];
      }
    }
    return;
  }
  const std::byte* own = rows + (lane & 7) * stride + 16 * (lane >> 3);
#pragma unroll
  for (int i = 0; i < Octet<kHeadSize>::kGroups; i += 4) {
    const uint4 four = kSide == Side::kKey ? LoadTile(own + 16 * i) : LoadTransposed(own + 16 * i);
    const uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) WidenPair(dtype, words[k], x->value[i + k]);
  }
}

template <int kHeadSize, Side kSide>
__device__ void EncodeOctet(DType dtype, int octet, const std::byte* page, std::byte* codes) {
  Octet<kHeadSize> x;
  LoadOctet<kHeadSize, kSide>(dtype, octet, &x);
  const int lane = Lane();
  const OctetNorms<kSide> norms(page, kHeadSize, octet, lane);
  const float inverse[2] = {1.0f / norms.norm[0], 1.0f / norms.norm[1]};
  if (Shared().unusual != 0) {
#pragma unroll
    for (auto& pair : x.value) {
      for (float& value : pair) value = Sanitised(value);
    }
  }
#pragma unroll
  for (auto& pair : x.value) {
#pragma unroll
    for (int e = 0; e < 2; ++e) pair[e] = DivideByHalf(pair[e], norms.norm[e], inverse[e]);
  }
  HadamardOctet<kHeadSize, kSide>(&x, lane);
  const uint32_t cells = SharedAddress(&Shared().cells[0][lane % kLevelCopies]);
#pragma unroll
  for (int i = 0; i < Octet<kHeadSize>::kGroups; ++i) {
    codes[kGroupPairs * i + 8 * lane + octet] =
        static_cast<std::byte>(LevelOf(x.value[i][0], cells) | LevelOf(x.value[i][1], cells) << 4);
  }
}

__device__ std::byte* CodesOf(const PageJob& job, Side side, int head_size) {
  return job.primary + (side == Side::kKey ? 0 : UniversalCodeBytes(head_size));
}

template <int kHeadSize, Side kSide>
__device__ void EncodeSide(const PageJob& job, DType dtype, const std::byte* base) {
  std::byte* codes = Behind() + kPageTokens * OctetRowBytes(kHeadSize, ElementBytes(dtype));
  BeginRows<kHeadSize>(job, dtype, base);
  FinishCopies();
  __syncthreads();
  StoreNorms<kHeadSize>(kSide, dtype, job.primary);
  __syncthreads();
#pragma unroll 1
  for (int octet = ThreadIndex() / 32; octet < kOctets; octet += kWarps) {
    EncodeOctet<kHeadSize, kSide>(dtype, octet, job.primary, codes);
  }
  __syncthreads();
  auto* to = reinterpret_cast<uint4*>(CodesOf(job, kSide, kHeadSize));
  for (int i = ThreadIndex(); i < static_cast<int>(UniversalCodeBytes(kHeadSize)) / 16;
       i += kThreads) {
    to[i] = reinterpret_cast<const uint4*>(codes)[i];
  }
}

// Thread blocks an SM that the registers shall do for.
FQ_HD constexpr int BlocksPerSm(int head_size) { return head_size <= 128 ? 7 : 4; }

template <int kHeadSize>
__global__ void __launch_bounds__(kThreads, BlocksPerSm(kHeadSize))
    EncodeUniversalPages(UniversalParams p) {
  const PageJob& job = p.jobs.jobs[blockIdx.x];
  const PagedRows& rows = p.rows.sets[job.rows];
  const int thread = ThreadIndex();
  FillRowOffsets(rows, job, Shared().offsets);
  if (thread < kLevelCells) {
    const LevelCell cell = LevelCellOf(thread);
    for (LevelCell& copy : Shared().cells[thread]) copy = cell;
  }
  if (thread == 0) Shared().unusual = 0;
  __syncthreads();
  EncodeSide<kHeadSize, Side::kKey>(job, p.rows.dtype, SideBase(rows, Side::kKey));
  EncodeSide<kHeadSize, Side::kValue>(job, p.rows.dtype, SideBase(rows, Side::kValue));
  if (job.sink != 0) {
    EncodeSinkRows(kHeadSize, p.rows.dtype, rows, job, Shared().offsets,
                   job.primary + UniversalPageBytes(kHeadSize));
  }
  WriteChecksums(job, PageBytesOf<kHeadSize>(job), 0, Shared().scratch);
}

// Puts an octet into rows of shared memory.
template <int kHeadSize, Side kSide>
__device__ void StoreOctet(DType dtype, const Octet<kHeadSize>& x, std::byte* rows) {
  const int lane = Lane(), g = lane >> 2, t = lane & 3;
  const int stride = OctetRowBytes(kHeadSize, ElementBytes(dtype));
#pragma unroll
  for (int i = 0; i < Octet<kHeadSize>::kGroups; ++i) {
    if (dtype == DType::kF32) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int token = kSide == Side::kKey ? g : 2 * t + e;
        const int channel = kGroupChannels * i + (kSide == Side::kKey ? 2 * t + e : g);
        reinterpret_cast<float*>(rows + token * stride)[channel] = x.value[i][e];
      }
      continue;
    }
    const uint32_t pair = dtype == DType::kF16 ? PackHalves(x.value[i][0], x.value[i][1])
                                               : PackBFloat16(x.value[i][0], x.value[i][1]);
    reinterpret_cast<uint32_t*>(rows + g * stride)[kGroupChannels / 2 * i + t] =
        kSide == Side::kKey ? pair : Transpose(pair);
  }
}

// Levels of an octet to rows: x = norm * (H v).
template <int kHeadSize, Side kSide>
__device__ void DecodeOctet(DType dtype, int octet, const std::byte* page, const std::byte* codes,
                            std::byte* rows) {
  const int lane = Lane();
  const OctetNorms<kSide> norms(page, kHeadSize, octet, lane);
  Octet<kHeadSize> x;
#pragma unroll
  for (int i = 0; i < Octet<kHeadSize>::kGroups; ++i) {
    const float2 levels =
        Shared().levels[static_cast<uint8_t>(codes[kGroupPairs * i + 8 * lane + octet])];
    x.value[i][0] = levels.x;
    x.value[i][1] = levels.y;
  }
  HadamardOctet<kHeadSize, kSide>(&x, lane);
#pragma unroll
  for (auto& pair : x.value) {
    pair[0] *= norms.norm[0];
    pair[1] *= norms.norm[1];
  }
  StoreOctet<kHeadSize, kSide>(dtype, x, rows);
}

// Tokens [begin, end) of an octet to where the engine has them; by a warp.
template <int kHeadSize>
__device__ void DeliverOctet(DType dtype, int octet, int begin, int end, const std::byte* rows,
                             std::byte* base) {
  const int element = ElementBytes(dtype);
#pragma unroll 4
  for (int i = Lane(); i < kOctetTokens * kHeadSize * element / 16; i += 32) {
    const RowChunk chunk = ChunkOf<kHeadSize>(i, element);
    const int token = kOctetTokens * octet + chunk.token;
    if (token < begin || token >= end) continue;
    *reinterpret_cast<uint4*>(base + element * Shared().offsets[token] + chunk.at) =
        *reinterpret_cast<const uint4*>(rows + chunk.token * OctetRowBytes(kHeadSize, element) +
                                        chunk.at);
  }
}

// A level by its number, which differs between threads: an array would lie in local memory.
__device__ float LevelAt(int index) {
  constexpr LevelTable kTable = LloydMaxLevels();
  uint32_t bits = FloatBits(kTable.level[0]);
#pragma unroll
  for (int i = 1; i < kLevels; ++i) {
    bits += index >= i ? FloatBits(kTable.level[i]) - FloatBits(kTable.level[i - 1]) : 0;
  }
  return FloatFromBits(bits);
}

// Levels of the two values of every byte.
__device__ void FillLevels() {
  for (int code = ThreadIndex(); code < kTableEntries; code += kThreads) {
    Shared().levels[code] = make_float2(LevelAt(code & 15), LevelAt(code >> 4));
  }
}

template <int kHeadSize>
__global__ void __launch_bounds__(kThreads, BlocksPerSm(kHeadSize))
    DecodeUniversalPages(UniversalParams p) {
  constexpr int kCodeBytes = static_cast<int>(UniversalCodeBytes(kHeadSize));
  const PageJob& job = p.jobs.jobs[blockIdx.x];
  const PagedRows& rows = p.rows.sets[job.rows];
  const DType dtype = p.rows.dtype;
  FillRowOffsets(rows, job, Shared().offsets);
  if (!VerifyPages(p.jobs, job, PageBytesOf<kHeadSize>(job), 0, Shared().scratch)) return;
  std::byte* codes = Behind();
  for (int i = ThreadIndex(); i < 2 * kCodeBytes / 16; i += kThreads) {
    BeginCopy(job.primary + 16 * i, SharedAddress(codes + 16 * i));
  }
  FillLevels();
  FinishCopies();
  __syncthreads();
  const int warp = ThreadIndex() / 32, begin = SinkEnd(job);
  std::byte* own =
      codes + 2 * kCodeBytes + warp * kOctetTokens * OctetRowBytes(kHeadSize, ElementBytes(dtype));
#pragma unroll 1
  for (int task = warp; task < 2 * kOctets; task += kWarps) {
    const int octet = task / 2;
    if (kOctetTokens * (octet + 1) <= begin || kOctetTokens * octet >= job.tokens) continue;
    if (task % 2 == 0) {
      DecodeOctet<kHeadSize, Side::kKey>(dtype, octet, job.primary, codes, own);
    } else {
      DecodeOctet<kHeadSize, Side::kValue>(dtype, octet, job.primary, codes + kCodeBytes, own);
    }
    WarpBarrier();
    DeliverOctet<kHeadSize>(dtype, octet, begin, job.tokens, own,
                            SideBase(rows, task % 2 == 0 ? Side::kKey : Side::kValue));
    WarpBarrier();
  }
#pragma unroll 1
  for (int kv = 0; kv < 2; ++kv) {
    const Side side = kv == 0 ? Side::kKey : Side::kValue;
    DecodeSinkRows(side, kHeadSize, job.primary + UniversalPageBytes(kHeadSize), begin, dtype,
                   SideBase(rows, side), Shared().offsets);
  }
}

template <int kHeadSize>
cudaError_t LaunchUniversal(bool encode, const UniversalParams& p, cudaStream_t stream) {
  constexpr size_t kCodes = UniversalCodeBytes(kHeadSize);
  const size_t row = OctetRowBytes(kHeadSize, ElementBytes(p.rows.dtype));
  static_assert(sizeof(UniversalShared) + kPageTokens * OctetRowBytes(kHeadSize, 4) + kCodes <=
                kSharedLimit);
  if (encode) {
    const size_t shared = sizeof(UniversalShared) + kPageTokens * row + kCodes;
    return Launch(EncodeUniversalPages<kHeadSize>, {p.jobs.count, kThreads, shared}, stream, p);
  }
  const size_t shared = sizeof(UniversalShared) + 2 * kCodes + kWarps * kOctetTokens * row;
  return Launch(DecodeUniversalPages<kHeadSize>, {p.jobs.count, kThreads, shared}, stream, p);
}

}  // namespace

cudaError_t CodeUniversalPages(bool encode, int head_size, const PageJobs& jobs,
                               const RowSets& rows, cudaStream_t stream) {
  const UniversalParams params{jobs, rows};
  switch (head_size) {
    case 64:
      return LaunchUniversal<64>(encode, params, stream);
    case 96:
      return LaunchUniversal<96>(encode, params, stream);
    case 128:
      return LaunchUniversal<128>(encode, params, stream);
    default:
      return LaunchUniversal<256>(encode, params, stream);
  }
}

}  // namespace fq
