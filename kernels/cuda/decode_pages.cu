#include "kernels/cuda/decode_pages.h"

#include "absl/strings/str_cat.h"
#include "kernels/codec/page_layout.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/group_codes.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/page_rows.cuh"
#include "kernels/cuda/plain_pages.h"

namespace fq {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;

// A thread block decodes one side of one page.
struct DecodeParams {
  PageJobs jobs;
  PagedRows rows;
  const std::byte* coders;
};

// Start of shared memory. The values of the coded domain follow, either as A fragments (tokens x
// components; FP16, one term or two) or in FP32.
struct DecodeShared {
  uint32_t lookups[2 * kPartWords];
  int64_t offsets[kPageTokens];  // of the rows
  uint64_t scratch[32];
};
static_assert(sizeof(DecodeShared) % 16 == 0);

FQ_HD constexpr int TermBytes(int head_size) { return kPageTokens * head_size * 2; }
FQ_HD constexpr int CodedStride(int head_size) {
  return head_size + 8;
}  // floats; keeps banks apart

// One side of a page and its coder.
struct DecodeSide {
  const PageJob& job;
  const std::byte* coder;
  const uint32_t* lookups;  // of base and refinement, shared memory
  int lane;
};

template <typename T>
__device__ const T* At(const std::byte* base, int offset) {
  return reinterpret_cast<const T*>(base + offset);
}

__device__ void CopyLookups(const std::byte* coder, int offset, int parts, uint32_t* lookups) {
  const auto* from = At<uint4>(coder, offset);
  for (int i = static_cast<int>(threadIdx.x); i < parts * kPartWords / 4; i += kThreads) {
    reinterpret_cast<uint4*>(lookups)[i] = from[i];
  }
}

// The lane's values of a group in the coded domain, bit for bit as on the CPU.
template <int kHeadSize, Side kSide>
__device__ void DecodeGroup(const DecodeSide& side, int group, float (&v)[kLaneValues]) {
  constexpr CoderLayout kLayout{kHeadSize};
  const int bits = At<uint8_t>(side.coder, kLayout.Classes(0))[group];
  const int start = At<uint16_t>(side.coder, kLayout.Starts(0))[group];
  ReadGroup(bits, side.job.primary + start, side.lookups, side.lane, v);
  const int refinement_bits = At<uint8_t>(side.coder, kLayout.Classes(1))[group];
  if (side.job.refinement == nullptr || refinement_bits == 0) return;
  float refinement[kLaneValues];
  ReadGroup(refinement_bits,
            side.job.refinement + At<uint16_t>(side.coder, kLayout.Starts(1))[group],
            side.lookups + kPartWords, side.lane, refinement);
  const float* sd = At<float>(side.coder, kLayout.Sd()) + kGroupChannels * group;
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) {
    v[i] = Refined(v[i], refinement[i], sd[ComponentOf(kSide, side.lane, i)]);
  }
}

// Two neighbouring values as an FP16 pair of an A fragment of tokens x components.
template <Side kSide>
__device__ uint32_t FragmentPair(float first, float second) {
  const uint32_t pair = PackHalves(first, second);
  return kSide == Side::kKey ? pair : Transpose(pair);
}

// Puts a group into the fragments [step][tile][lane] of 16 bytes: half of them, 8 bytes.
template <int kHeadSize, Side kSide>
__device__ void StoreFragments(const DecodeSide& side, int group, bool two_terms,
                               const float (&v)[kLaneValues], std::byte* fragments) {
  constexpr CoderLayout kLayout{kHeadSize};
  const float* feed = At<float>(side.coder, kLayout.Feed()) + kGroupChannels * group;
  float high[kLaneValues], low[kLaneValues];
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) {
    const float value = Clamp(v[i] * feed[ComponentOf(kSide, side.lane, i)], kInputLimit);
    high[i] = value;
    low[i] = value - WidenHalves(PackHalves(value, 0.0f)).x;
  }
#pragma unroll
  for (int tile = 0; tile < 4; ++tile) {
    std::byte* to = fragments + (((group >> 1) * 4 + tile) * 32 + side.lane) * 16 + 8 * (group & 1);
    const float *h = high + 4 * tile, *l = low + 4 * tile;
    *reinterpret_cast<uint2*>(to) =
        make_uint2(FragmentPair<kSide>(h[0], h[1]), FragmentPair<kSide>(h[2], h[3]));
    if (!two_terms) continue;
    *reinterpret_cast<uint2*>(to + TermBytes(kHeadSize)) =
        make_uint2(FragmentPair<kSide>(l[0], l[1]), FragmentPair<kSide>(l[2], l[3]));
  }
}

// Which tokens of the page a lane's accumulators hold: 16 tile + g and + 8.
template <int kTiles>
struct Accumulators {
  float x[kTiles][4][4];  // [tile of 16 tokens][tile of 8 channels][d of the MMA]
};

// x = fragments times the inverse matrix, for kTiles tiles of tokens and a block of 32 channels.
template <int kHeadSize, int kTiles>
__device__ void MultiplyInverse(const DecodeSide& side, int block, const std::byte* fragments,
                                bool two_terms, Accumulators<kTiles>* out) {
  constexpr CoderLayout kLayout{kHeadSize};
  const uint4* matrix =
      At<uint4>(side.coder, kLayout.Inverse()) + block * kLayout.Steps() * 128 + side.lane;
  const uint4* values = reinterpret_cast<const uint4*>(fragments) + side.lane;
  const uint8_t* classes = At<uint8_t>(side.coder, kLayout.Classes(0));
  const uint8_t* refinement = At<uint8_t>(side.coder, kLayout.Classes(1));
#pragma unroll 2
  for (int step = 0; step < kLayout.Steps(); ++step) {
    const int used = classes[2 * step] | classes[2 * step + 1] |
                     (two_terms ? refinement[2 * step] | refinement[2 * step + 1] : 0);
    if (used == 0) continue;
    const uint4 high01 = matrix[step * 128], high23 = matrix[step * 128 + 32];
    const uint4 low01 = matrix[step * 128 + 64], low23 = matrix[step * 128 + 96];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint4 a = values[(4 * step + tile) * 32];
      float(&x)[4][4] = out->x[tile];
      MultiplyAdd(x[0], a, high01.x, high01.y);
      MultiplyAdd(x[1], a, high01.z, high01.w);
      MultiplyAdd(x[2], a, high23.x, high23.y);
      MultiplyAdd(x[3], a, high23.z, high23.w);
      MultiplyAdd(x[0], a, low01.x, low01.y);
      MultiplyAdd(x[1], a, low01.z, low01.w);
      MultiplyAdd(x[2], a, low23.x, low23.y);
      MultiplyAdd(x[3], a, low23.z, low23.w);
      if (!two_terms) continue;
      const uint4 rest = values[TermBytes(kHeadSize) / 16 + (4 * step + tile) * 32];
      MultiplyAdd(x[0], rest, high01.x, high01.y);
      MultiplyAdd(x[1], rest, high01.z, high01.w);
      MultiplyAdd(x[2], rest, high23.x, high23.y);
      MultiplyAdd(x[3], rest, high23.z, high23.w);
    }
  }
}

// Where the rows of one side go.
struct RowTarget {
  DType dtype;
  std::byte* base;
  const int64_t* offsets;  // [64], shared memory
  int begin, end;          // tokens to write
};

template <int kHeadSize, int kTiles>
__device__ void StoreProducts(const DecodeSide& side, int block, int first_token,
                              const Accumulators<kTiles>& in, const RowTarget& target) {
  constexpr CoderLayout kLayout{kHeadSize};
  const int channel = 32 * block + 8 * (side.lane & 3);
  const float* scale = At<float>(side.coder, kLayout.OutputScale()) + channel;
  const float* mu = At<float>(side.coder, kLayout.Mu()) + channel;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float x[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] = fmaf(in.x[tile][i >> 1][2 * r + (i & 1)], scale[i], mu[i]);
      const int token = first_token + 16 * tile + 8 * r + (side.lane >> 2);
      if (token < target.begin || token >= target.end) continue;
      StoreChannels(target.dtype, target.base, target.offsets[token] + channel, x);
    }
  }
}

// The warps share the blocks of 32 channels; small heads split the tokens as well.
template <int kHeadSize>
__device__ void DeliverRows(const DecodeSide& side, const std::byte* fragments, bool two_terms,
                            const RowTarget& target) {
  constexpr int kTiles = kHeadSize < 128 ? 2 : 4, kBlocks = kHeadSize / 32;
  for (int unit = static_cast<int>(threadIdx.x) / 32; unit < kBlocks * 4 / kTiles; unit += kWarps) {
    const int block = unit % kBlocks, first_tile = unit / kBlocks * kTiles;
    Accumulators<kTiles> product = {};
    MultiplyInverse<kHeadSize, kTiles>(side, block, fragments + first_tile * 32 * 16, two_terms,
                                       &product);
    StoreProducts<kHeadSize, kTiles>(side, block, 16 * first_tile, product, target);
  }
}

template <int kHeadSize, Side kSide>
__device__ void DecodeToRows(const DecodeSide& side, bool two_terms, std::byte* fragments,
                             const RowTarget& target) {
  for (int group = static_cast<int>(threadIdx.x) / 32; group < kHeadSize / kGroupChannels;
       group += kWarps) {
    float v[kLaneValues];
    DecodeGroup<kHeadSize, kSide>(side, group, v);
    StoreFragments<kHeadSize, kSide>(side, group, two_terms, v, fragments);
  }
  __syncthreads();
  DeliverRows<kHeadSize>(side, fragments, two_terms, target);
}

template <int kHeadSize, Side kSide>
__device__ void DecodeToCoded(const DecodeSide& side, float* coded, const RowTarget& target) {
  constexpr int kStride = CodedStride(kHeadSize), kChunks = kHeadSize / 8;
  for (int group = static_cast<int>(threadIdx.x) / 32; group < kChunks; group += kWarps) {
    float v[kLaneValues];
    DecodeGroup<kHeadSize, kSide>(side, group, v);
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) {
      coded[TokenOf(kSide, side.lane, i) * kStride + kGroupChannels * group +
            ComponentOf(kSide, side.lane, i)] = v[i];
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kPageTokens * kChunks; i += kThreads) {
    const int token = i / kChunks, component = i % kChunks * 8;
    if (token < target.begin || token >= target.end) continue;
    float x[8];
#pragma unroll
    for (int c = 0; c < 8; ++c) x[c] = coded[token * kStride + component + c];
    StoreChannels(target.dtype, target.base, target.offsets[token] + component, x);
  }
}

template <int kHeadSize, Domain kDomain, Side kSide>
__device__ void DecodeBaseSide(const PageJob& job, const std::byte* coder, DecodeShared* shared,
                               const RowTarget& target) {
  constexpr CoderLayout kLayout{kHeadSize};
  auto* values = reinterpret_cast<std::byte*>(shared + 1);
  CopyLookups(coder, kLayout.Tables(0), job.refinement == nullptr ? 1 : 2, shared->lookups);
  __syncthreads();
  const DecodeSide side{job, coder, shared->lookups, static_cast<int>(threadIdx.x) & 31};
  if constexpr (kDomain == Domain::kRows) {
    DecodeToRows<kHeadSize, kSide>(side, job.refinement != nullptr, values, target);
  } else {
    DecodeToCoded<kHeadSize, kSide>(side, reinterpret_cast<float*>(values), target);
  }
  if (target.begin > 0) {
    const int codes = *At<uint32_t>(coder, kLayout.PageBytes(0));
    DecodeSinkRows(kSide, kHeadSize, job.primary + codes, target.begin, target.dtype, target.base,
                   target.offsets);
  }
}

// Blocks [0, count) decode K, the others V.
template <int kHeadSize, Domain kDomain>
__global__ void __launch_bounds__(kThreads) DecodeBasePages(DecodeParams p) {
  constexpr CoderLayout kLayout{kHeadSize};
  FQ_DYNAMIC_SHARED(memory);
  auto* shared = reinterpret_cast<DecodeShared*>(memory);
  const bool is_key = static_cast<int>(blockIdx.x) < p.jobs.count;
  const int index = static_cast<int>(blockIdx.x) - (is_key ? 0 : p.jobs.count);
  const PageJob job = p.jobs.jobs[index];
  const std::byte* coder =
      p.coders + (2 * static_cast<size_t>(job.coder) + (is_key ? 0 : 1)) * kLayout.Bytes();
  FillRowOffsets(p.rows, job, shared->offsets);
  const int record = job.sink != 0 ? static_cast<int>(SinkRecordBytes(kHeadSize)) : 0;
  if (!VerifyPages(p.jobs, index, *At<uint32_t>(coder, kLayout.PageBytes(0)) + record,
                   *At<uint32_t>(coder, kLayout.PageBytes(1)), is_key, shared->scratch)) {
    return;
  }
  const RowTarget target{p.rows.dtype, static_cast<std::byte*>(is_key ? p.rows.k : p.rows.v),
                         shared->offsets, SinkEnd(job), job.tokens};
  if (is_key) {
    DecodeBaseSide<kHeadSize, kDomain, Side::kKey>(job, coder, shared, target);
  } else {
    DecodeBaseSide<kHeadSize, kDomain, Side::kValue>(job, coder, shared, target);
  }
}

template <int kHeadSize>
cudaError_t LaunchDecode(Domain domain, const DecodeParams& params, cudaStream_t stream) {
  const size_t rows = TermBytes(kHeadSize) * (params.jobs.refined ? 2 : 1);
  constexpr size_t kCoded = kPageTokens * CodedStride(kHeadSize) * sizeof(float);
  static_assert(sizeof(DecodeShared) + kCoded <= kSharedLimit);
  static_assert(sizeof(DecodeShared) + 2 * TermBytes(kHeadSize) <= kSharedLimit);
  const size_t values = domain == Domain::kRows ? rows : kCoded;
  const LaunchShape shape{2 * params.jobs.count, kThreads, sizeof(DecodeShared) + values};
  return domain == Domain::kRows
             ? Launch(DecodeBasePages<kHeadSize, Domain::kRows>, shape, stream, params)
             : Launch(DecodeBasePages<kHeadSize, Domain::kCoded>, shape, stream, params);
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
                         const PageJobs& jobs, const PagedRows& rows, cudaStream_t stream) {
  if (!IsHeadSize(options.head_size)) {
    return absl::InvalidArgumentError(
        absl::StrCat("head_size is ", options.head_size, ", not 64, 96, 128 or 256"));
  }
  if (jobs.count == 0) return absl::OkStatus();
  if (options.kind != PageKind::kBase) {
    return DecodePlainPages(options.kind, options.head_size, jobs, rows, stream);
  }
  const DecodeParams params{jobs, rows, coders->data()};
  return CudaStatus(LaunchDecodeBase(options, params, stream), "DecodeBasePages");
}

}  // namespace fq
