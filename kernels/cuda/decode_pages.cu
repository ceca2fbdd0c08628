#include "kernels/cuda/decode_pages.h"

#include "absl/strings/str_cat.h"
#include "kernels/codec/page_layout.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/group_codes.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/page_rows.cuh"
#include "kernels/cuda/plain_pages.h"
#include "kernels/cuda/verify_pages.h"

namespace fq {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;

// A thread block decodes one side of one page.
struct DecodeParams {
  PageJobs jobs;
  RowSets rows;
  const std::byte* coders;
};

// Start of shared memory; see Regions for what follows.
struct DecodeShared {
  int64_t offsets[kPageTokens];    // of the rows
  uint8_t classes[2][kMaxGroups];  // [part]
  uint16_t starts[2][kMaxGroups];  // of a group in the codes of its side
  uint32_t used;                   // bit i: group i has codes
  uint32_t unused[3];
};
static_assert(sizeof(DecodeShared) % 16 == 0);

FQ_HD constexpr int TermBytes(int head_size) { return kPageTokens * head_size * 2; }
// Of a row in the coded domain; what is added keeps banks apart.
FQ_HD constexpr int CodedStride(int head_size, int element) { return (head_size + 8) * element; }

// Codes come into shared memory all at once, where there is room for them.
FQ_HD constexpr int CodeBytes(int head_size) {
  return head_size < 256 ? kPageTokens * head_size : 0;
}

// Shared memory behind DecodeShared: lookups [parts][kPartWords], codes [parts] of the side, and
// the values of the coded domain: either as A fragments (tokens x components; FP16, one term or
// two) or as rows.
struct Regions {
  int head_size, parts;

  FQ_HD constexpr int Lookups(int part) const {
    return static_cast<int>(sizeof(DecodeShared)) + part * 4 * kPartWords;
  }
  FQ_HD constexpr int Codes(int part) const { return Lookups(parts) + part * CodeBytes(head_size); }
  FQ_HD constexpr int Values() const { return Codes(parts); }
};

// One side of a page and its coder.
struct DecodeSide {
  const PageJob& job;
  const std::byte* coder;
  std::byte* memory;  // shared
  Regions regions;
  bool refined;  // this page; the regions have room for what the launch may hold
  int lane;

  __device__ DecodeShared& shared() const { return *reinterpret_cast<DecodeShared*>(memory); }
  __device__ int bits(int part, int group) const { return shared().classes[part][group]; }
  __device__ const std::byte* codes(int part, int group) const {
    const int start = shared().starts[part][group];
    if (CodeBytes(regions.head_size) != 0) return memory + regions.Codes(part) + start;
    return (part == 0 ? job.primary : job.refinement) + start;
  }
  __device__ const uint32_t* lookups(int part) const {
    return reinterpret_cast<const uint32_t*>(memory + regions.Lookups(part));
  }
};

template <typename T>
__device__ const T* At(const std::byte* base, int offset) {
  return reinterpret_cast<const T*>(base + offset);
}

// Copies `bytes` bytes, a multiple of 16, into shared memory; by the whole thread block.
__device__ void CopyToShared(const std::byte* from, int bytes, std::byte* to) {
  for (int i = static_cast<int>(threadIdx.x); i < bytes / 16; i += kThreads) {
    reinterpret_cast<uint4*>(to)[i] = LoadConstant<uint4>(from + 16 * i);
  }
}

// Everything of the page's side that lies in device memory, but for the matrix.
template <int kHeadSize>
__device__ void CopySide(const DecodeSide& side) {
  constexpr CoderLayout kLayout{kHeadSize};
  constexpr int kGroups = kHeadSize / kGroupChannels;
  DecodeShared& shared = side.shared();
  const int thread = static_cast<int>(threadIdx.x);
  int used = 0;
  for (int part = 0; part < (side.refined ? 2 : 1); ++part) {
    const auto* classes = At<uint8_t>(side.coder, kLayout.Classes(part));
    const auto* starts = At<uint16_t>(side.coder, kLayout.Starts(part));
    CopyToShared(side.coder + kLayout.Tables(part), 4 * kPartWords,
                 side.memory + side.regions.Lookups(part));
    int begin = 0;
    if constexpr (CodeBytes(kHeadSize) != 0) {
      const std::byte* page = part == 0 ? side.job.primary : side.job.refinement;
      const int end = starts[kGroups - 1] + GroupBytes(classes[kGroups - 1]);
      begin = starts[0];
      CopyToShared(page + begin, end - begin, side.memory + side.regions.Codes(part));
    }
    if (thread < kGroups) {
      shared.classes[part][thread] = classes[thread];
      shared.starts[part][thread] = static_cast<uint16_t>(starts[thread] - begin);
      used |= classes[thread];
    }
  }
  if (thread < 32) {
    const uint32_t groups = Ballot(used != 0);
    if (thread == 0) shared.used = groups;
  }
}

// The lane's values of a group in the coded domain, bit for bit as on the CPU.
template <int kHeadSize, Side kSide>
__device__ void DecodeGroup(const DecodeSide& side, int group, float (&v)[kLaneValues]) {
  constexpr CoderLayout kLayout{kHeadSize};
  ReadGroup(side.bits(0, group), side.codes(0, group), side.lookups(0), side.lane, v);
  if (!side.refined || side.bits(1, group) == 0) return;
  float refinement[kLaneValues];
  ReadGroup(side.bits(1, group), side.codes(1, group), side.lookups(1), side.lane, refinement);
  const float* sd = At<float>(side.coder, kLayout.Sd()) + kGroupChannels * group;
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) {
    v[i] = Refined(v[i], refinement[i], sd[ComponentOf(kSide, side.lane, i)]);
  }
}

// A group as pairs of neighbouring components of a token: FP16 or BF16, [tile][r].
struct GroupWords {
  uint32_t word[4][2];
};

// Gives the lane of a pair of V what it holds of K: token 16 tile + 8 r + g, components 2 t and
// 2 t + 1.
template <Side kSide>
__device__ GroupWords ByToken(const GroupWords& in) {
  GroupWords out;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t pair = in.word[i >> 1][i & 1];
    out.word[i >> 1][i & 1] = kSide == Side::kKey ? pair : Transpose(pair);
  }
  return out;
}

// Rounds values of [tile][2 r + e].
__device__ GroupWords PackGroup(bool half, const float (&v)[kLaneValues]) {
  GroupWords out;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float first = v[2 * i], second = v[2 * i + 1];
    out.word[i >> 1][i & 1] = half ? PackHalves(first, second) : PackBFloat16(first, second);
  }
  return out;
}

// A group of the base as it meets the transform: FP16, class 8 in whole steps.
__device__ GroupWords BaseWords(const DecodeSide& side, int group) {
  GroupWords out = {};
  const int bits = side.bits(0, group);
  const uint32_t* tables = side.lookups(0) + TableWord(bits);
  const std::byte* own = side.codes(0, group) + 2 * bits * side.lane;
  if (bits == 8) {
    const uint4 codes = *reinterpret_cast<const uint4*>(own);
    const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t pair = words[i >> 1] >> (16 * (i & 1));
      const int first = static_cast<int>(pair & 255u), second = static_cast<int>(pair >> 8 & 255u);
      out.word[i >> 1][i & 1] =
          PackHalves(static_cast<float>(first - 128), static_cast<float>(second - 128));
    }
  } else if (bits == 4) {
    const uint2 codes = *reinterpret_cast<const uint2*>(own);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t four = i < 4 ? codes.x : codes.y;
      out.word[i >> 1][i & 1] = tables[four >> (8 * (i & 3)) & 255u];
    }
  } else if (bits == 2) {
    const uint32_t codes = *reinterpret_cast<const uint32_t*>(own);
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      const uint32_t chain = tables[codes >> (8 * tile) & 255u];
      out.word[tile][0] = chain;
      out.word[tile][1] = ChainPair(chain, 1);
    }
  } else if (bits == 1) {
    const uint32_t codes = *reinterpret_cast<const uint16_t*>(own);
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const uint2 chains = reinterpret_cast<const uint2*>(tables)[codes >> (8 * pair) & 255u];
      out.word[2 * pair][0] = chains.x;
      out.word[2 * pair][1] = ChainPair(chains.x, 1);
      out.word[2 * pair + 1][0] = chains.y;
      out.word[2 * pair + 1][1] = ChainPair(chains.y, 1);
    }
  }
  return out;
}

// What a step of the transform takes of a refined group: high and low term.
template <int kHeadSize, Side kSide>
__device__ void RefinedWords(const DecodeSide& side, int group, GroupWords* high, GroupWords* low) {
  constexpr CoderLayout kLayout{kHeadSize};
  float v[kLaneValues], feed[2];
  DecodeGroup<kHeadSize, kSide>(side, group, v);
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    feed[e] = At<float>(side.coder,
                        kLayout.Feed())[kGroupChannels * group + ComponentOf(kSide, side.lane, e)];
  }
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) v[i] = Clamp(v[i] * feed[i & 1], kInputLimit);
  *high = PackGroup(true, v);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float2 rounded = WidenHalves(high->word[i >> 1][i & 1]);
    v[2 * i] -= rounded.x;
    v[2 * i + 1] -= rounded.y;
  }
  *low = PackGroup(true, v);
}

// Puts two groups into the fragments [step][tile][lane] of 16 bytes.
template <Side kSide>
__device__ void StoreStep(const DecodeSide& side, int step, const GroupWords& even,
                          const GroupWords& odd, std::byte* fragments) {
  const GroupWords first = ByToken<kSide>(even), second = ByToken<kSide>(odd);
#pragma unroll
  for (int tile = 0; tile < 4; ++tile) {
    reinterpret_cast<uint4*>(fragments)[(4 * step + tile) * 32 + side.lane] = make_uint4(
        first.word[tile][0], first.word[tile][1], second.word[tile][0], second.word[tile][1]);
  }
}

// Which tokens of the page a lane's accumulators hold: 16 tile + g and + 8.
template <int kTiles>
struct Accumulators {
  float x[kTiles][4][4];  // [tile of 16 tokens][tile of 8 channels][d of the MMA]
};

// Adds the products of a tile of tokens with 32 columns of a term of the matrix.
__device__ void AddProducts(float (&x)[4][4], const uint4& a, const uint4& b01, const uint4& b23) {
  MultiplyAdd(x[0], a, b01.x, b01.y);
  MultiplyAdd(x[1], a, b01.z, b01.w);
  MultiplyAdd(x[2], a, b23.x, b23.y);
  MultiplyAdd(x[3], a, b23.z, b23.w);
}

// x = fragments times the inverse matrix, for kTiles tiles of tokens and a block of 32 channels.
// Each term of the matrix is on its way while the products of the other one are made.
template <int kHeadSize, int kTiles, bool kRefined>
__device__ void MultiplyInverse(const DecodeSide& side, int block, const std::byte* fragments,
                                Accumulators<kTiles>* out) {
  constexpr CoderLayout kLayout{kHeadSize};
  const uint4* matrix =
      At<uint4>(side.coder, kLayout.Inverse()) + block * kLayout.Steps() * 128 + side.lane;
  const uint4* values = reinterpret_cast<const uint4*>(fragments) + side.lane;
  uint32_t used = side.shared().used;
  used = (used | used >> 1) & 0x55555555u;  // bit 2 s: step s has codes
  if (used == 0) return;
  const uint4* at = matrix + LowestBit(used) * 64;
  uint4 high01 = LoadConstant<uint4>(at), high23 = LoadConstant<uint4>(at + 32);
#pragma unroll 1
  while (used != 0) {
    const uint4 low01 = LoadConstant<uint4>(at + 64), low23 = LoadConstant<uint4>(at + 96);
    const uint4* own = values + LowestBit(used) * 64;
    uint4 a[kTiles];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      a[tile] = own[tile * 32];
      AddProducts(out->x[tile], a[tile], high01, high23);
      if (!kRefined) continue;
      AddProducts(out->x[tile], own[TermBytes(kHeadSize) / 16 + tile * 32], high01, high23);
    }
    used &= used - 1;
    if (used != 0) {
      at = matrix + LowestBit(used) * 64;
      high01 = LoadConstant<uint4>(at);
      high23 = LoadConstant<uint4>(at + 32);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) AddProducts(out->x[tile], a[tile], low01, low23);
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
  float scale[8], mu[8];
  LoadEight(At<float>(side.coder, kLayout.OutputScale()) + channel, scale);
  LoadEight(At<float>(side.coder, kLayout.Mu()) + channel, mu);
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
__device__ void DeliverRows(const DecodeSide& side, const std::byte* fragments,
                            const RowTarget& target) {
  constexpr int kTiles = kHeadSize < 128 ? 2 : 4, kBlocks = kHeadSize / 32;
  for (int unit = static_cast<int>(threadIdx.x) / 32; unit < kBlocks * 4 / kTiles; unit += kWarps) {
    const int block = unit % kBlocks, first_tile = unit / kBlocks * kTiles;
    Accumulators<kTiles> product = {};
    const std::byte* own = fragments + first_tile * 32 * 16;
    if (side.refined) {
      MultiplyInverse<kHeadSize, kTiles, true>(side, block, own, &product);
    } else {
      MultiplyInverse<kHeadSize, kTiles, false>(side, block, own, &product);
    }
    StoreProducts<kHeadSize, kTiles>(side, block, 16 * first_tile, product, target);
  }
}

template <int kHeadSize, Side kSide>
__device__ void DecodeToRows(const DecodeSide& side, const RowTarget& target) {
  std::byte* fragments = side.memory + side.regions.Values();
  for (int step = static_cast<int>(threadIdx.x) / 32; step < kHeadSize / 16; step += kWarps) {
    if (!side.refined) {
      StoreStep<kSide>(side, step, BaseWords(side, 2 * step), BaseWords(side, 2 * step + 1),
                       fragments);
      continue;
    }
    GroupWords even[2], odd[2];  // [term]
    RefinedWords<kHeadSize, kSide>(side, 2 * step, &even[0], &even[1]);
    RefinedWords<kHeadSize, kSide>(side, 2 * step + 1, &odd[0], &odd[1]);
    StoreStep<kSide>(side, step, even[0], odd[0], fragments);
    StoreStep<kSide>(side, step, even[1], odd[1], fragments + TermBytes(kHeadSize));
  }
  __syncthreads();
  DeliverRows<kHeadSize>(side, fragments, target);
}

// Rows of the coded domain in shared memory, elements of 2 bytes.
template <int kHeadSize, Side kSide>
__device__ void FillHalfRows(const DecodeSide& side, bool half, std::byte* rows) {
  constexpr int kStride = CodedStride(kHeadSize, 2) / 4;
  auto* words = reinterpret_cast<uint32_t*>(rows) + (side.lane >> 2) * kStride + (side.lane & 3);
  for (int group = static_cast<int>(threadIdx.x) / 32; group < kHeadSize / kGroupChannels;
       group += kWarps) {
    GroupWords own;
    if (half && !side.refined && side.bits(0, group) != 8) {
      own = BaseWords(side, group);  // the tables hold FP16
    } else {
      float v[kLaneValues];
      DecodeGroup<kHeadSize, kSide>(side, group, v);
      own = PackGroup(half, v);
    }
    own = ByToken<kSide>(own);
#pragma unroll
    for (int i = 0; i < 8; ++i) words[8 * i * kStride + 4 * group] = own.word[i >> 1][i & 1];
  }
}

template <int kHeadSize, Side kSide>
__device__ void FillFloatRows(const DecodeSide& side, std::byte* rows) {
  constexpr int kStride = CodedStride(kHeadSize, 4) / 4;
  for (int group = static_cast<int>(threadIdx.x) / 32; group < kHeadSize / kGroupChannels;
       group += kWarps) {
    float v[kLaneValues];
    DecodeGroup<kHeadSize, kSide>(side, group, v);
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) {
      reinterpret_cast<float*>(rows)[TokenOf(kSide, side.lane, i) * kStride +
                                     kGroupChannels * group + ComponentOf(kSide, side.lane, i)] =
          v[i];
    }
  }
}

template <int kHeadSize, Side kSide>
__device__ void DecodeToCoded(const DecodeSide& side, const RowTarget& target) {
  std::byte* rows = side.memory + side.regions.Values();
  const int element = ElementBytes(target.dtype), chunks = kHeadSize * element / 16;
  if (element == 2) {
    FillHalfRows<kHeadSize, kSide>(side, target.dtype == DType::kF16, rows);
  } else {
    FillFloatRows<kHeadSize, kSide>(side, rows);
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kPageTokens * chunks; i += kThreads) {
    const int token = i / chunks, at = i % chunks * 16;
    if (token < target.begin || token >= target.end) continue;
    *reinterpret_cast<uint4*>(target.base + element * target.offsets[token] + at) =
        *reinterpret_cast<const uint4*>(rows + token * CodedStride(kHeadSize, element) + at);
  }
}

template <int kHeadSize, Domain kDomain, Side kSide>
__device__ void DecodeBaseSide(const DecodeSide& side, const RowTarget& target) {
  constexpr CoderLayout kLayout{kHeadSize};
  CopySide<kHeadSize>(side);
  __syncthreads();
  if constexpr (kDomain == Domain::kRows) {
    DecodeToRows<kHeadSize, kSide>(side, target);
  } else {
    DecodeToCoded<kHeadSize, kSide>(side, target);
  }
  if (target.begin > 0) {
    const int codes = *At<uint32_t>(side.coder, kLayout.PageBytes(0));
    DecodeSinkRows(kSide, kHeadSize, side.job.primary + codes, target.begin, target.dtype,
                   target.base, target.offsets);
  }
}

// Blocks [0, count) decode K, the others V.
template <int kHeadSize, Domain kDomain>
__global__ void __launch_bounds__(kThreads, kDomain == Domain::kRows ? 4 : 7)
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
    DecodeBaseSide<kHeadSize, kDomain, Side::kKey>(side, target);
  } else {
    DecodeBaseSide<kHeadSize, kDomain, Side::kValue>(side, target);
  }
}

template <int kHeadSize>
cudaError_t LaunchDecode(Domain domain, const DecodeParams& params, cudaStream_t stream) {
  const int parts = params.jobs.refined ? 2 : 1;
  const int coded = kPageTokens * CodedStride(kHeadSize, ElementBytes(params.rows.dtype));
  const int values = domain == Domain::kRows ? parts * TermBytes(kHeadSize) : coded;
  const Regions regions{kHeadSize, parts};
  const LaunchShape shape{2 * params.jobs.count, kThreads,
                          static_cast<size_t>(regions.Values() + values)};
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
