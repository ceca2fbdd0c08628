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

constexpr int kMaxWarps = 8;
constexpr int kChecksumThreads = 128;
constexpr int kFewPages = 128;
constexpr int kUnitsAhead = 2;  // of rows, likewise
constexpr int kListsAhead = 4;  // lists on their way before the first is needed

// A thread block encodes one side of one page. Its warps take turns in the pairs of groups.
struct EncodeParams {
  PageJobs jobs;
  RowSets rows;
  const std::byte* coders;
  const std::byte* lists;  // [coder][2][ListBytes()], or null
};

// Start of shared memory. Behind it: the rows as A fragments [step][tile][lane] of 16 bytes, then
// SearchTables [parts], then an OctetScratch for each warp.
struct EncodeShared {
  int64_t offsets[kPageTokens];  // of the rows
  int next_task[4];              // the first counts the tasks that a warp has taken
};
static_assert(sizeof(EncodeShared) % 16 == 0 && sizeof(SearchTables) % 16 == 0);

// The thread block's. Found anew where it is used: a pointer to shared memory that goes through a
// struct in local memory loses its address space (nvcc 13.0).
__device__ EncodeShared& Shared() {
  FQ_DYNAMIC_SHARED(memory);
  return *reinterpret_cast<EncodeShared*>(memory);
}

FQ_HD constexpr int FragmentBytes(int head_size) { return 2 * kPageTokens * head_size; }

// One side of a page and its coder.
struct EncodeSide {
  const PageJob& job;
  const std::byte* coder;
  const std::byte* lists;  // of base and refinement, or null
  int kv;                  // 0 = K, 1 = V
  int parts;               // that the launch has room for
  int warp, lane;

  __device__ Side side() const { return kv == 0 ? Side::kKey : Side::kValue; }
};

template <int kHeadSize>
__device__ SearchTables& Tables(int part) {
  auto* tables = reinterpret_cast<std::byte*>(&Shared() + 1) + FragmentBytes(kHeadSize);
  return reinterpret_cast<SearchTables*>(tables)[part];
}

template <int kHeadSize>
__device__ OctetScratch& Octets(const EncodeSide& side) {
  return reinterpret_cast<OctetScratch*>(&Tables<kHeadSize>(side.parts))[side.warp];
}

// The lane's in the first fragment.
__device__ uint4* Fragments(int lane) { return reinterpret_cast<uint4*>(&Shared() + 1) + lane; }

template <typename T>
__device__ const T* At(const std::byte* base, int offset) {
  return reinterpret_cast<const T*>(base + offset);
}

// Scaled FP16 pairs of channels [channel, channel + 8) of a row with NaN, infinities or the like:
// NaN becomes the mean.
template <int kHeadSize>
__device__ uint4 ScaleUnusual(const EncodeSide& side, int channel, const float (&x)[8]) {
  constexpr CoderLayout kLayout{kHeadSize};
  const float* scale = At<float>(side.coder, kLayout.ChannelScale()) + channel;
  const float* mu = At<float>(side.coder, kLayout.Mu()) + channel;
  float y[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float value = x[i] != x[i] ? mu[i] : Clamp(x[i], kInputLimit);
    y[i] = Clamp(value * scale[i], kInputLimit);
  }
  return make_uint4(PackHalves(y[0], y[1]), PackHalves(y[2], y[3]), PackHalves(y[4], y[5]),
                    PackHalves(y[6], y[7]));
}

// Whether one of the FP16 is an infinity or NaN.
__device__ bool AnyInfinite(const uint4& pairs) {
  constexpr uint32_t kExponents = 0x7C007C00u, kOne = 0x04000400u, kCarries = 0x80008000u;
  const uint32_t carries = ((pairs.x & kExponents) + kOne) | ((pairs.y & kExponents) + kOne) |
                           ((pairs.z & kExponents) + kOne) | ((pairs.w & kExponents) + kOne);
  return (carries & kCarries) != 0;
}

// Channels [channel, channel + 8) of a row as the transform takes them: scaled FP16 pairs.
template <int kHeadSize>
__device__ uint4 Scaled(const EncodeSide& side, DType dtype, int channel, const float (&scale)[8],
                        const float (&x)[8]) {
  float y[8], largest = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    y[i] = x[i] * scale[i];
    if (dtype != DType::kF16) largest = fmaxf(largest, fabsf(x[i]));
  }
  const uint4 pairs = make_uint4(PackHalves(y[0], y[1]), PackHalves(y[2], y[3]),
                                 PackHalves(y[4], y[5]), PackHalves(y[6], y[7]));
  if (!AnyInfinite(pairs) && largest <= kInputLimit) return pairs;
  return ScaleUnusual<kHeadSize>(side, channel, x);
}

// Where the rows lie and how they are shared out: in units of a tile of tokens and 32 channels.
template <int kHeadSize>
struct RowUnit {
  int tile, block, token, channel;

  __device__ RowUnit(int unit, int lane)
      : tile(unit & 3),
        block(unit >> 2),
        token(16 * tile + (lane >> 2)),
        channel(32 * block + 8 * (lane & 3)) {}
  static constexpr int kCount = kHeadSize / 8;
};

// Rows of the page as fragments of tokens x channels (coder_layout.h, ForwardChannel). Rows that
// the page does not have are 0. All loads of a few units are on their way at once.
template <int kHeadSize>
__device__ void LoadFragments(const EncodeSide& side, DType dtype, const std::byte* base,
                              int warps) {
  using Unit = RowUnit<kHeadSize>;
  constexpr CoderLayout kLayout{kHeadSize};
#pragma unroll 1
  for (int first = side.warp; first < Unit::kCount; first += kUnitsAhead * warps) {
    RawChannels raw[kUnitsAhead][2];
#pragma unroll
    for (int i = 0; i < 2 * kUnitsAhead; ++i) {
      const Unit unit(first + i / 2 * warps, side.lane);
      const int token = unit.token + 8 * (i & 1);
      raw[i / 2][i & 1] = RawChannels{};
      if (first + i / 2 * warps >= Unit::kCount || token >= side.job.tokens) continue;
      raw[i / 2][i & 1] = LoadRaw(dtype, base, Shared().offsets[token] + unit.channel);
    }
#pragma unroll
    for (int i = 0; i < kUnitsAhead; ++i) {
      if (first + i * warps >= Unit::kCount) break;
      const Unit unit(first + i * warps, side.lane);
      float scale[8], x[2][8];
      LoadEight(At<float>(side.coder, kLayout.ChannelScale()) + unit.channel, scale);
      uint4 two[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        WidenRaw(dtype, raw[i][r], x[r]);
        two[r] = Scaled<kHeadSize>(side, dtype, unit.channel, scale, x[r]);
      }
      uint4* to = Fragments(side.lane) + (8 * unit.block + unit.tile) * 32;
      if (side.kv == 0) {
        to[0] = make_uint4(two[0].x, two[1].x, two[0].y, two[1].y);
        to[4 * 32] = make_uint4(two[0].z, two[1].z, two[0].w, two[1].w);
      } else {
        to[0] = make_uint4(two[0].x, two[0].y, two[1].x, two[1].y);
        to[4 * 32] = make_uint4(two[0].z, two[0].w, two[1].z, two[1].w);
      }
    }
  }
}

// The lane's values of two neighbouring groups, by tile and 2 r + e.
struct GroupPair {
  float u[2][4][4];  // [group][tile]
};

// Adds the products of a tile of rows with a term of the matrix.
template <Side kSide>
__device__ void AddProducts(float (&u)[2][4], const uint4& x, const uint4& matrix) {
  if (kSide == Side::kKey) {
    MultiplyAdd(u[0], x, matrix.x, matrix.y);
    MultiplyAdd(u[1], x, matrix.z, matrix.w);
  } else {
    MultiplyAdd(u[0], matrix, x.x, x.y);
    MultiplyAdd(u[1], matrix, x.z, x.w);
  }
}

// Products of K [tile][group][2 r + e] or of V [tile][r][2 group + e] with scale and bias.
template <int kHeadSize, Side kSide>
__device__ GroupPair Finished(const EncodeSide& side, int pair, const float (&product)[4][2][4]) {
  constexpr CoderLayout kLayout{kHeadSize};
  GroupPair out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int group = i >> 1, e = i & 1;
    const int component = kGroupChannels * (2 * pair + group) + ComponentOf(kSide, side.lane, e);
    const float scale = At<float>(side.coder, kLayout.ComponentScale())[component];
    const float bias = At<float>(side.coder, kLayout.ComponentBias())[component];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int tile = j >> 1, r = j & 1;
      const float value =
          kSide == Side::kKey ? product[tile][group][2 * r + e] : product[tile][r][2 * group + e];
      out.u[group][tile][2 * r + e] = fmaf(value, scale, bias);
    }
  }
  return out;
}

// A (x - mu) of 16 components. The products of K are tokens x components,
// those of V components x tokens: what lane 4 g + t gets is what its codes are made of.
template <int kHeadSize, Side kSide>
__device__ GroupPair MultiplyForward(const EncodeSide& side, int pair) {
  constexpr CoderLayout kLayout{kHeadSize};
  const uint4* matrix =
      At<uint4>(side.coder, kLayout.Forward()) + pair * kLayout.Steps() * 64 + side.lane;
  const uint4* rows = Fragments(side.lane);
  float product[4][2][4] = {};
  uint4 high = LoadConstant<uint4>(matrix);  // each term is loaded while the other is used
#pragma unroll 1
  for (int step = 0; step < kLayout.Steps(); ++step) {
    const uint4 low = LoadConstant<uint4>(matrix + step * 64 + 32);
    uint4 x[4];
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      x[tile] = rows[(4 * step + tile) * 32];
      AddProducts<kSide>(product[tile], x[tile], high);
    }
    if (step + 1 < kLayout.Steps()) high = LoadConstant<uint4>(matrix + step * 64 + 64);
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) AddProducts<kSide>(product[tile], x[tile], low);
  }
  return Finished<kHeadSize, kSide>(side, pair, product);
}

// The lane's values of one of the groups; rows without codes become 0.
__device__ void TakeGroup(const EncodeSide& side, const GroupPair& in, int group,
                          float (&u)[kLaneValues]) {
  const bool odd = (group & 1) != 0;
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) {
    u[i] = odd ? in.u[1][i >> 2][i & 3] : in.u[0][i >> 2][i & 3];
  }
  const int begin = SinkEnd(side.job), end = side.job.tokens;
  if (begin == 0 && end == kPageTokens) return;
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) {
    const int token = TokenOf(side.side(), side.lane, i);
    if (token < begin || token >= end) u[i] = 0.0f;
  }
}

// Replaces the codes of bytes that found no list by what a look at all entries finds. Rare, so the
// values are moved on and the search is there once.
template <int kBits>
__device__ void FindLost(const SearchTables& tables, const float (&u)[kLaneValues], uint32_t lost,
                         int lane, uint64_t* codes) {
  constexpr int kValues = ValuesPerByte(kBits);
  float x[kLaneValues];
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) x[i] = u[i];
#pragma unroll 1
  for (int b = 0; b < kLaneValues / kValues; ++b) {
    const uint32_t mine = lost >> b & 1u;
    const int code = FoundOrNearestOfAll<kValues>(
        mine != 0, 0, [&](int entry) { return EntryOf<kBits>(tables, entry); }, x, lane);
    if (mine != 0) {
      *codes = (*codes & ~(uint64_t{255} << (8 * b))) | static_cast<uint64_t>(code) << (8 * b);
    }
#pragma unroll
    for (int i = 0; i + kValues < kLaneValues; ++i) x[i] = x[i + kValues];
  }
}

// Codes of the classes 4 and 2.
template <int kBits>
__device__ void SearchLists(const SearchTables& tables, const std::byte* lists, int lane,
                            const float (&u)[kLaneValues], uint8_t* codes) {
  constexpr int kValues = ValuesPerByte(kBits), kBytes = kLaneValues / kValues;
  uint64_t found = 0;
  uint32_t lost = 0;
#pragma unroll
  for (int first = 0; first < kBytes; first += kListsAhead) {
    CandidateList<kBits> candidates[kListsAhead];
#pragma unroll
    for (int b = 0; b < kListsAhead; ++b) {
      candidates[b] = ListOf<kBits>(lists, u + kValues * (first + b));
    }
#pragma unroll
    for (int b = 0; b < kListsAhead; ++b) {
      const bool is_lost = candidates[b].words[0] == kNoList;
      const int code = NearestOfList<kBits>(tables, candidates[b], u + kValues * (first + b));
      found |= static_cast<uint64_t>(code) << (8 * (first + b));
      lost |= (is_lost ? 1u : 0u) << (first + b);
    }
  }
  if (Ballot(lost != 0) != 0) FindLost<kBits>(tables, u, lost, lane, &found);
#pragma unroll
  for (int b = 0; b < kBytes; ++b) codes[b] = static_cast<uint8_t>(found >> (8 * b));
}

template <int kHeadSize, int kBits>
__device__ void SearchGroup(const EncodeSide& side, int part, const float (&u)[kLaneValues],
                            uint8_t* codes) {
  const SearchTables& tables = Tables<kHeadSize>(part);
  if constexpr (kBits == 1) {
    OctetScratch* scratch = &Octets<kHeadSize>(side);
    uint32_t found = 0;
#pragma unroll 1
    for (int b = 0; b < 2; ++b) {
      float x[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] = b == 0 ? u[i] : u[8 + i];
      found |= static_cast<uint32_t>(NearestOctet(tables, x, side.lane, scratch)) << (8 * b);
    }
    codes[0] = static_cast<uint8_t>(found);
    codes[1] = static_cast<uint8_t>(found >> 8);
  } else {
    const std::byte* lists = side.lists == nullptr ? nullptr : side.lists + ListOffset(part, kBits);
    SearchLists<kBits>(tables, lists, side.lane, u, codes);
  }
}

// Finds the codes of a group; replaces the values by what they decode to when a refinement follows.
template <int kHeadSize, int kBits>
__device__ void EncodeTableGroup(const EncodeSide& side, int part, float (&u)[kLaneValues],
                                 uint8_t* codes) {
  SearchGroup<kHeadSize, kBits>(side, part, u, codes);
  if (part == 1 || side.job.refinement == nullptr) return;
#pragma unroll
  for (int i = 0; i < kLaneValues; i += ValuesPerByte(kBits)) {
    const int code = codes[i / ValuesPerByte(kBits)];
    Entry<ValuesPerByte(kBits)> entry;
    if constexpr (kBits == 1) {
      entry = OctetOf(Tables<kHeadSize>(0), code);
    } else {
      entry = EntryOf<kBits>(Tables<kHeadSize>(0), code);
    }
#pragma unroll
    for (int v = 0; v < ValuesPerByte(kBits); ++v) u[i + v] = entry.value[v];
  }
}

// Stores the codes of the lane's values. When a refinement follows, replaces the values by what
// they decode to.
template <int kHeadSize>
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
    EncodeTableGroup<kHeadSize, 4>(side, part, u, bytes);
    *reinterpret_cast<uint2*>(own) = *reinterpret_cast<const uint2*>(bytes);
  } else if (bits == 2) {
    EncodeTableGroup<kHeadSize, 2>(side, part, u, bytes);
    *reinterpret_cast<uint32_t*>(own) = *reinterpret_cast<const uint32_t*>(bytes);
  } else if (bits == 1) {
    EncodeTableGroup<kHeadSize, 1>(side, part, u, bytes);
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
  TakeGroup(side, product, group, v);
#pragma unroll 1  // one body for base and refinement keeps the searches short
  for (int part = 0; part < 2; ++part) {
    std::byte* page = part == 0 ? side.job.primary : side.job.refinement;
    if (page == nullptr) return;
    if (part == 1) {
      float u[kLaneValues];
      TakeGroup(side, product, group, u);
#pragma unroll
      for (int i = 0; i < kLaneValues; ++i) {
        const float deviation = sd[ComponentOf(side.side(), side.lane, i)];
        v[i] = ScaledResidual(u[i], v[i], InverseDeviation(deviation));
      }
    }
    EncodeGroup<kHeadSize>(side, part, At<uint8_t>(side.coder, kLayout.Classes(part))[group], v,
                           page + At<uint16_t>(side.coder, kLayout.Starts(part))[group]);
  }
}

// Codes of two neighbouring groups, which share the steps of the transform.
template <int kHeadSize>
__device__ void EncodePair(const EncodeSide& side, int pair) {
  constexpr CoderLayout kLayout{kHeadSize};
  const uint8_t* base = At<uint8_t>(side.coder, kLayout.Classes(0));
  const uint8_t* refinement = At<uint8_t>(side.coder, kLayout.Classes(1));
  int used = base[2 * pair] | base[2 * pair + 1];
  if (side.job.refinement != nullptr) used |= refinement[2 * pair] | refinement[2 * pair + 1];
  if (used == 0) return;
  const GroupPair product = side.kv == 0 ? MultiplyForward<kHeadSize, Side::kKey>(side, pair)
                                         : MultiplyForward<kHeadSize, Side::kValue>(side, pair);
#pragma unroll 1
  for (int group = 2 * pair; group < 2 * pair + 2; ++group) {
    EncodeParts<kHeadSize>(side, product, group);
  }
}

// The number of a task that no other warp has.
__device__ int TakeTask(int lane) {
  const int task = lane == 0 ? FetchAdd(Shared().next_task, 1) : 0;
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

// Makes the search tables of a part.
template <int kHeadSize>
__device__ void FillTables(const EncodeSide& side, int part, int threads) {
  constexpr CoderLayout kLayout{kHeadSize};
  const uint32_t* words = At<uint32_t>(side.coder, kLayout.Tables(part));
  SearchTables& tables = Tables<kHeadSize>(part);
  for (int code = static_cast<int>(threadIdx.x); code < kTableEntries; code += threads) {
    float four[2], two[4];
    WidenEntry<4>(words, code, four);
    WidenEntry<2>(words, code, two);
    tables.class4[code] = make_uint2(words[TableWord(4) + code], FloatBits(StartOf(four)));
    tables.class2[code] = make_uint2(words[TableWord(2) + code], FloatBits(StartOf(two)));
    PutOctet(words, code, &tables);
  }
}

// Blocks [0, count) encode K, the others V.
template <int kHeadSize>
__global__ void __launch_bounds__(32 * kMaxWarps, 2) EncodeBasePages(EncodeParams p) {
  constexpr CoderLayout kLayout{kHeadSize};
  const int kv = static_cast<int>(blockIdx.x) < p.jobs.count ? 0 : 1;
  const PageJob& job = p.jobs.jobs[static_cast<int>(blockIdx.x) - kv * p.jobs.count];
  const size_t coder = 2 * static_cast<size_t>(job.coder) + kv;
  const EncodeSide side{job,
                        p.coders + coder * kLayout.Bytes(),
                        p.lists == nullptr ? nullptr : p.lists + 2 * coder * ListBytes(),
                        kv,
                        p.jobs.refined ? 2 : 1,
                        static_cast<int>(threadIdx.x) / 32,
                        static_cast<int>(threadIdx.x) & 31};
  const int threads = static_cast<int>(blockDim.x);
  if (threadIdx.x == 0) Shared().next_task[0] = 0;
  const PagedRows& rows = p.rows.sets[job.rows];
  FillRowOffsets(rows, job, Shared().offsets);
  for (int part = 0; part < (job.refinement == nullptr ? 1 : 2); ++part) {
    FillTables<kHeadSize>(side, part, threads);
  }
  __syncthreads();
  LoadFragments<kHeadSize>(side, p.rows.dtype,
                           static_cast<const std::byte*>(kv == 0 ? rows.k : rows.v), threads / 32);
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
  constexpr size_t kFixed = sizeof(EncodeShared) + FragmentBytes(kHeadSize);
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
