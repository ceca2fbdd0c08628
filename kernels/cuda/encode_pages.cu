#include "kernels/cuda/encode_pages.h"

#include "absl/strings/str_cat.h"
#include "kernels/codec/page_layout.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/group_codes.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/nearest_entry.cuh"
#include "kernels/cuda/nearest_octet.cuh"
#include "kernels/cuda/page_rows.cuh"
#include "kernels/cuda/plain_pages.h"

namespace fq {
namespace {

// One body for base and refinement keeps the searches short; on sm_100 and later it would spill.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kPartBodies = 2;
#else
[[maybe_unused]] constexpr int kPartBodies = 1;
#endif
constexpr int kSideWarps = 4, kThreads = 2 * 32 * kSideWarps;

// A thread block encodes one page: warps 0..3 K, 4..7 V.
struct EncodeParams {
  PageJobs jobs;
  PagedRows rows;
  const std::byte* coders;
  const std::byte* lists;  // [coder][2][ListBytes()], or null
};

// Start of shared memory; the rows of K and V follow as A fragments [step][tile][lane] of 16 bytes.
struct EncodeShared {
  uint32_t lookups[2][2 * kPartWords];  // [side], of base and refinement
  float starts[2][2][kTableEntries];    // [side][part]: -|entry|^2 / 2 of class 1
  OctetScratch octets[2 * kSideWarps];  // of each warp
  int64_t offsets[kPageTokens];         // of the rows
  uint64_t scratch[32];
};
static_assert(sizeof(EncodeShared) % 16 == 0 && kThreads == kTableEntries);

// The thread block's. Found anew where it is used: a pointer to shared memory that goes through a
// struct in local memory loses its address space (nvcc 13.0).
__device__ EncodeShared& Shared() {
  FQ_DYNAMIC_SHARED(memory);
  return *reinterpret_cast<EncodeShared*>(memory);
}

// One side of a page and its coder.
struct EncodeSide {
  const PageJob& job;
  const std::byte* coder;
  const std::byte* lists;  // of base and refinement, or null
  int kv;                  // 0 = K, 1 = V
  int warp, lane;          // within the side

  __device__ Side side() const { return kv == 0 ? Side::kKey : Side::kValue; }
};

// The lane's in the first fragment of a side.
template <int kHeadSize>
__device__ uint4* Fragments(const EncodeSide& side) {
  return reinterpret_cast<uint4*>(&Shared() + 1) + side.kv * kPageTokens * kHeadSize / 8 +
         side.lane;
}

template <typename T>
__device__ const T* At(const std::byte* base, int offset) {
  return reinterpret_cast<const T*>(base + offset);
}

// Channels [channel, channel + 8) of a row as the transform takes them: scaled FP16 pairs. NaN
// becomes the mean.
template <int kHeadSize>
__device__ uint4 LoadScaled(const EncodeSide& side, DType dtype, const std::byte* base, int64_t row,
                            int channel) {
  constexpr CoderLayout kLayout{kHeadSize};
  float x[8];
  LoadChannels(dtype, base, row + channel, x);
  const float* scale = At<float>(side.coder, kLayout.ChannelScale()) + channel;
  const float* mu = At<float>(side.coder, kLayout.Mu()) + channel;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float value = x[i] != x[i] ? mu[i] : Clamp(x[i], kInputLimit);
    x[i] = Clamp(value * scale[i], kInputLimit);
  }
  return make_uint4(PackHalves(x[0], x[1]), PackHalves(x[2], x[3]), PackHalves(x[4], x[5]),
                    PackHalves(x[6], x[7]));
}

// Rows of the page as A fragments of tokens x channels (coder_layout.h, ForwardChannel). Rows that
// the page does not have are 0.
template <int kHeadSize>
__device__ void LoadFragments(const EncodeSide& side, DType dtype, const std::byte* base,
                              const int64_t* offsets) {
  const int tile = side.warp, g = side.lane >> 2, t = side.lane & 3;
  const int token = 16 * tile + g;
#pragma unroll 2
  for (int block = 0; block < kHeadSize / 32; ++block) {
    uint4 rows[2] = {make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0)};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (token + 8 * r >= side.job.tokens) continue;
      rows[r] =
          LoadScaled<kHeadSize>(side, dtype, base, offsets[token + 8 * r], 32 * block + 8 * t);
    }
    uint4* to = Fragments<kHeadSize>(side) + (8 * block + tile) * 32;
    to[0] = make_uint4(rows[0].x, rows[1].x, rows[0].y, rows[1].y);
    to[4 * 32] = make_uint4(rows[0].z, rows[1].z, rows[0].w, rows[1].w);
  }
}

// The lane's values of two neighbouring groups, by tile and 2 r + e.
struct GroupPair {
  float u[2][4][4];  // [group][tile]
};

// A (x - mu) but for scale and bias, of 16 components. The products of K are tokens x components,
// those of V components x tokens: what lane 4 g + t gets is what its codes are made of.
template <int kHeadSize, Side kSide>
__device__ GroupPair MultiplyForward(const EncodeSide& side, int pair) {
  constexpr CoderLayout kLayout{kHeadSize};
  const uint4* matrix =
      At<uint4>(side.coder, kLayout.Forward()) + pair * kLayout.Steps() * 64 + side.lane;
  const uint4* rows = Fragments<kHeadSize>(side);
  float product[4][2][4] = {};  // of K [tile][group][2 r + e], of V [tile][r][2 group + e]
#pragma unroll 1
  for (int step = 0; step < kLayout.Steps(); ++step) {
    const uint4 high = matrix[step * 64], low = matrix[step * 64 + 32];
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      const uint4 x = rows[(4 * step + tile) * 32];
      float(&u)[2][4] = product[tile];
      if (kSide == Side::kKey) {
        MultiplyAdd(u[0], x, high.x, high.z);
        MultiplyAdd(u[1], x, high.y, high.w);
        MultiplyAdd(u[0], x, low.x, low.z);
        MultiplyAdd(u[1], x, low.y, low.w);
      } else {
        MultiplyAdd(u[0], high, x.x, x.z);
        MultiplyAdd(u[1], high, x.y, x.w);
        MultiplyAdd(u[0], low, x.x, x.z);
        MultiplyAdd(u[1], low, x.y, x.w);
      }
    }
  }
  GroupPair out;
#pragma unroll
  for (int i = 0; i < 2 * kLaneValues; ++i) {
    const int group = i >> 4, tile = i >> 2 & 3, r = i >> 1 & 1, e = i & 1;
    out.u[group][tile][2 * r + e] =
        kSide == Side::kKey ? product[tile][group][2 * r + e] : product[tile][r][2 * group + e];
  }
  return out;
}

// The lane's values of one of the groups, scaled; rows without codes become 0.
template <int kHeadSize>
__device__ void FinishGroup(const EncodeSide& side, const GroupPair& in, int group,
                            float (&u)[kLaneValues]) {
  constexpr CoderLayout kLayout{kHeadSize};
  const float* scale = At<float>(side.coder, kLayout.ComponentScale()) + kGroupChannels * group;
  const float* bias = At<float>(side.coder, kLayout.ComponentBias()) + kGroupChannels * group;
  const bool odd = (group & 1) != 0;
  const int begin = SinkEnd(side.job), end = side.job.tokens;
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) {
    const float product = odd ? in.u[1][i >> 2][i & 3] : in.u[0][i >> 2][i & 3];
    const int c = ComponentOf(side.side(), side.lane, i),
              token = TokenOf(side.side(), side.lane, i);
    const float value = fmaf(product, scale[c], bias[c]);
    u[i] = token >= begin && token < end ? value : 0.0f;
  }
}

// Nearest entry to the values of one byte; a warp calls it together.
template <int kBits>
__device__ int Nearest(const EncodeSide& side, int part, const float* u) {
  const uint32_t* tables = Shared().lookups[side.kv] + part * kPartWords;
  if constexpr (kBits == 1) {
    OctetScratch* scratch = &Shared().octets[threadIdx.x / 32];
    return NearestOctet(tables, Shared().starts[side.kv][part], u, side.lane, scratch);
  } else {
    const std::byte* lists = side.lists == nullptr ? nullptr : side.lists + ListOffset(part, kBits);
    const int code = NearestOfList<kBits>(tables, lists, u);
    return code >= 0 ? code : NearestOfAll<kBits>(tables, u);
  }
}

// The values are moved on so that the search, which is long, exists once for all bytes.
template <int kBits>
__device__ void EncodeTableGroup(const EncodeSide& side, int part, float (&u)[kLaneValues],
                                 uint8_t* codes) {
  constexpr int kValues = ValuesPerByte(kBits), kBytes = kLaneValues / kValues;
  uint64_t packed = 0;
#pragma unroll 1
  for (int b = 0; b < kBytes; ++b) {
    const int code = Nearest<kBits>(side, part, u);
    packed |= static_cast<uint64_t>(code) << (8 * b);
    float entry[kValues];
    WidenEntry<kBits>(Shared().lookups[side.kv] + part * kPartWords, code, entry);
#pragma unroll
    for (int i = 0; i + kValues < kLaneValues; ++i) u[i] = u[i + kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) u[kLaneValues - kValues + i] = entry[i];
  }
#pragma unroll
  for (int b = 0; b < kBytes; ++b) codes[b] = static_cast<uint8_t>(packed >> (8 * b));
}

// Stores the codes of the lane's values and replaces the values by what they decode to.
__device__ void EncodeGroup(const EncodeSide& side, int part, int bits, float (&u)[kLaneValues],
                            std::byte* codes) {
  alignas(16) uint8_t bytes[kLaneValues];
  std::byte* own = codes + 2 * bits * side.lane;
  if (bits == 8) {
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) {
      bytes[i] = Class8Code(u[i]);
      u[i] = Class8Value(bytes[i]);
    }
    *reinterpret_cast<uint4*>(own) = *reinterpret_cast<const uint4*>(bytes);
  } else if (bits == 4) {
    EncodeTableGroup<4>(side, part, u, bytes);
    *reinterpret_cast<uint2*>(own) = *reinterpret_cast<const uint2*>(bytes);
  } else if (bits == 2) {
    EncodeTableGroup<2>(side, part, u, bytes);
    *reinterpret_cast<uint32_t*>(own) = *reinterpret_cast<const uint32_t*>(bytes);
  } else if (bits == 1) {
    EncodeTableGroup<1>(side, part, u, bytes);
    *reinterpret_cast<uint16_t*>(own) = *reinterpret_cast<const uint16_t*>(bytes);
  } else {
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) u[i] = 0.0f;
  }
}

// Codes of a group in the base and, where the job has one, in the refinement.
template <int kHeadSize>
__device__ void EncodeParts(const EncodeSide& side, const GroupPair& product, int group) {
  constexpr CoderLayout kLayout{kHeadSize};
  const float* sd = At<float>(side.coder, kLayout.Sd()) + kGroupChannels * group;
  float v[kLaneValues];
  FinishGroup<kHeadSize>(side, product, group, v);
#pragma unroll kPartBodies
  for (int part = 0; part < 2; ++part) {
    std::byte* page = part == 0 ? side.job.primary : side.job.refinement;
    if (page == nullptr) return;
    if (part == 1) {
      float u[kLaneValues];  // once more: cheaper than to keep them over the search
      FinishGroup<kHeadSize>(side, product, group, u);
#pragma unroll
      for (int i = 0; i < kLaneValues; ++i) {
        const float deviation = sd[ComponentOf(side.side(), side.lane, i)];
        v[i] = ScaledResidual(u[i], v[i], InverseDeviation(deviation));
      }
    }
    EncodeGroup(side, part, At<uint8_t>(side.coder, kLayout.Classes(part))[group], v,
                page + At<uint16_t>(side.coder, kLayout.Starts(part))[group]);
  }
}

template <int kHeadSize>
__device__ void EncodeGroups(const EncodeSide& side) {
  constexpr CoderLayout kLayout{kHeadSize};
  const uint8_t* base = At<uint8_t>(side.coder, kLayout.Classes(0));
  const uint8_t* refinement = At<uint8_t>(side.coder, kLayout.Classes(1));
#pragma unroll 1
  for (int pair = side.warp; pair < kLayout.Steps(); pair += kSideWarps) {
    int used = base[2 * pair] | base[2 * pair + 1];
    if (side.job.refinement != nullptr) used |= refinement[2 * pair] | refinement[2 * pair + 1];
    if (used == 0) continue;
    const GroupPair product = side.kv == 0 ? MultiplyForward<kHeadSize, Side::kKey>(side, pair)
                                           : MultiplyForward<kHeadSize, Side::kValue>(side, pair);
#pragma unroll 1
    for (int group = 2 * pair; group < 2 * pair + 2; ++group) {
      EncodeParts<kHeadSize>(side, product, group);
    }
  }
}

template <int kHeadSize>
__device__ EncodeSide MakeSide(const EncodeParams& p, const PageJob& job) {
  constexpr CoderLayout kLayout{kHeadSize};
  const int thread = static_cast<int>(threadIdx.x), kv = thread / (kThreads / 2);
  const size_t coder = 2 * static_cast<size_t>(job.coder) + kv;
  return {job,
          p.coders + coder * kLayout.Bytes(),
          p.lists == nullptr ? nullptr : p.lists + 2 * coder * ListBytes(),
          kv,
          thread / 32 % kSideWarps,
          thread & 31};
}

template <int kHeadSize>
__device__ void CopyLookups(const EncodeSide& side) {
  constexpr CoderLayout kLayout{kHeadSize};
  const auto* from = At<uint4>(side.coder, kLayout.Tables(0));
  auto* to = reinterpret_cast<uint4*>(Shared().lookups[side.kv]);
  const int parts = side.job.refinement == nullptr ? 1 : 2;
  for (int i = static_cast<int>(threadIdx.x) % (kThreads / 2); i < parts * kPartWords / 4;
       i += kThreads / 2) {
    to[i] = from[i];
  }
}

// After the lookups are there.
__device__ void FillStarts(int parts) {
  const int code = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 2 * parts; ++i) {
    const float nothing[8] = {};
    Shared().starts[i & 1][i >> 1][code] =
        EntryScore<1>(Shared().lookups[i & 1] + (i >> 1) * kPartWords, code, nothing);
  }
}

template <int kHeadSize>
__global__ void __launch_bounds__(kThreads, 2) EncodeBasePages(EncodeParams p) {
  constexpr CoderLayout kLayout{kHeadSize};
  const int index = static_cast<int>(blockIdx.x);
  const PageJob job = p.jobs.jobs[index];
  const EncodeSide side = MakeSide<kHeadSize>(p, job);
  const bool is_key = threadIdx.x < kThreads / 2;
  const auto* base = static_cast<const std::byte*>(is_key ? p.rows.k : p.rows.v);
  FillRowOffsets(p.rows, job, Shared().offsets);
  CopyLookups<kHeadSize>(side);
  __syncthreads();
  FillStarts(job.refinement == nullptr ? 1 : 2);
  LoadFragments<kHeadSize>(side, p.rows.dtype, base, Shared().offsets);
  const int codes = *At<uint32_t>(side.coder, kLayout.PageBytes(0));
  int record = 0;
  if (job.sink != 0) {
    EncodeSinkRows(kHeadSize, p.rows, job, Shared().offsets, job.primary + codes);
    record = static_cast<int>(SinkRecordBytes(kHeadSize));
  }
  __syncthreads();
  EncodeGroups<kHeadSize>(side);
  WriteChecksums(p.jobs, index, codes + record, *At<uint32_t>(side.coder, kLayout.PageBytes(1)),
                 Shared().scratch);
}

template <int kHeadSize>
cudaError_t LaunchEncode(const EncodeParams& params, cudaStream_t stream) {
  constexpr size_t kShared = sizeof(EncodeShared) + 2 * kPageTokens * kHeadSize * 2;
  static_assert(kShared <= kSharedLimit);
  return Launch(EncodeBasePages<kHeadSize>, {params.jobs.count, kThreads, kShared}, stream, params);
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
                         const PageJobs& jobs, const PagedRows& rows, cudaStream_t stream) {
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
