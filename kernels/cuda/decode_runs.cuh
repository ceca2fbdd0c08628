// x = Ai v + mu for runs of pages, into an engine's rows of 16 bits. The warps of a thread block
// keep the inverse matrix of a coder in registers from page to page, and the codes of a page are
// on their way while the one before is decoded.
#pragma once

#include "kernels/cuda/decode_rows.cuh"
#include "kernels/cuda/page_runs.h"

namespace fq {

// Every warp delivers 32 channels of its share of the tokens.
template <int kHeadSize>
struct RunShape {
  static constexpr int kBlocks = kHeadSize / 32, kShares = kHeadSize == 64 ? 2 : 1;
  static constexpr int kThreads = 32 * kBlocks * kShares, kTiles = 4 / kShares;
};

// Start of shared memory. Behind it: lookups [parts][kPartWords], fragments of the values, codes
// [parts] of two pages.
template <int kHeadSize, int kParts>
struct RunShared {
  PageJob jobs[kRunPages];
  int64_t offsets[kRunPages][kPageTokens];
  std::byte* rows[kRunPages];                 // of the side
  const std::byte* codes[kRunPages][kParts];  // in device memory; null: no such part
  int code_bytes[kRunPages][kParts];
  float scale[kHeadSize], mu[kHeadSize];
  uint16_t starts[kParts][kMaxGroups];  // of a group in the codes of its side
  uint8_t classes[kParts][kMaxGroups];
  uint32_t used;  // bit i: group i has codes
  uint32_t unused[3];

  FQ_HD static constexpr int Lookups(int part) {
    return static_cast<int>(sizeof(RunShared)) + part * 4 * kPartWords;
  }
  FQ_HD static constexpr int Values() { return Lookups(kParts); }
  FQ_HD static constexpr int Codes(int page, int part) {
    return Values() + TermBytes(kHeadSize) + (page % 2 * kParts + part) * CodeBytes(kHeadSize);
  }
  FQ_HD static constexpr int Bytes() { return Codes(1, kParts); }
};

// One run of a launch, as a thread sees it.
template <int kHeadSize, int kParts>
struct RunSide {
  using Shape = RunShape<kHeadSize>;
  using Memory = RunShared<kHeadSize, kParts>;
  FQ_HD static constexpr CoderLayout Layout() { return {kHeadSize}; }
  static constexpr int kGroups = kHeadSize / kGroupChannels, kSteps = kHeadSize / 16;

  const std::byte* coders;
  Run run;
  int thread, warp, lane;
  uint4 matrix[kSteps][2];  // the 32 channels of the warp

  __device__ std::byte* memory() const {
    FQ_DYNAMIC_SHARED(memory);
    return reinterpret_cast<std::byte*>(memory);
  }
  __device__ Memory& shared() const { return *reinterpret_cast<Memory*>(memory()); }
  __device__ const std::byte* Coder(int coder) const {
    return coders + (2 * static_cast<size_t>(coder) + run.kv) * Layout().Bytes();
  }

  __device__ void Copy(const std::byte* from, int bytes, int to) const {
    const uint32_t address = SharedAddress(memory() + to);
    for (int i = 16 * thread; i < bytes; i += 16 * Shape::kThreads) {
      BeginCopy(from + i, address + i);
    }
  }

  // Jobs, places of rows and of codes of all pages.
  __device__ void Begin(const PageJobs& jobs, const RowSets& sets) const {
    static_assert(sizeof(PageJob) % 8 == 0);
    constexpr int kWords = sizeof(PageJob) / 8;
    const auto* from = reinterpret_cast<const uint2*>(jobs.jobs + run.first);
    for (int i = thread; i < run.pages * kWords; i += Shape::kThreads) {
      reinterpret_cast<uint2*>(shared().jobs)[i] = from[i];
    }
    __syncthreads();
    if (thread < run.pages) {
      const PageJob& job = shared().jobs[thread];
      const PagedRows& rows = sets.sets[job.rows];
      shared().rows[thread] = static_cast<std::byte*>(run.kv == 0 ? rows.k : rows.v);
      FindCodes(0, job.primary);
      if constexpr (kParts == 2) FindCodes(1, job.refinement);
    }
    for (int i = thread; i < run.pages * kPageTokens; i += Shape::kThreads) {
      const PageJob& job = shared().jobs[i / kPageTokens];
      const int token = i % kPageTokens;
      if (token < job.tokens) {
        shared().offsets[i / kPageTokens][token] = RowOffset(sets.sets[job.rows], job, token);
      }
    }
    __syncthreads();
  }

  // Of the page that the thread looks after.
  __device__ void FindCodes(int part, const std::byte* page) const {
    const std::byte* coder = Coder(shared().jobs[thread].coder);
    const auto* starts = At<uint16_t>(coder, Layout().Starts(part));
    const int last = At<uint8_t>(coder, Layout().Classes(part))[kGroups - 1];
    shared().codes[thread][part] = page == nullptr ? nullptr : page + starts[0];
    shared().code_bytes[thread][part] = starts[kGroups - 1] + GroupBytes(last) - starts[0];
  }

  __device__ void BeginCodes(int page) const {
    if (page >= run.pages) return;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const std::byte* codes = shared().codes[page][part];
      if (codes != nullptr) Copy(codes, shared().code_bytes[page][part], Memory::Codes(page, part));
    }
  }

  // What all pages of a coder share. No thread may use that of the coder before.
  __device__ void TakeCoder(const std::byte* coder) {
    Copy(coder + Layout().Tables(0), kParts * 4 * kPartWords, Memory::Lookups(0));
    const uint4* from = At<uint4>(coder, Layout().Inverse()) +
                        warp % Shape::kBlocks * Layout().Steps() * 128 + lane;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      matrix[step][0] = LoadConstant<uint4>(from + 128 * step);
      matrix[step][1] = LoadConstant<uint4>(from + 128 * step + 32);
    }
    for (int i = thread; i < kHeadSize; i += Shape::kThreads) {
      shared().scale[i] = At<float>(coder, Layout().OutputScale())[i];
      shared().mu[i] = At<float>(coder, Layout().Mu())[i];
    }
    if (warp != 0) return;
    int any = 0;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const auto* starts = At<uint16_t>(coder, Layout().Starts(part));
      const int bits = lane < kGroups ? At<uint8_t>(coder, Layout().Classes(part))[lane] : 0;
      if (lane < kGroups) {
        shared().classes[part][lane] = static_cast<uint8_t>(bits);
        shared().starts[part][lane] = static_cast<uint16_t>(starts[lane] - starts[0]);
      }
      any |= bits;
    }
    const uint32_t groups = Ballot(any != 0);
    if (lane == 0) shared().used = groups;
  }

  __device__ GroupPart Part(int page, int part, int group) const {
    return {shared().classes[part][group],
            memory() + Memory::Codes(page, part) + shared().starts[part][group],
            reinterpret_cast<const uint32_t*>(memory() + Memory::Lookups(part))};
  }

  template <Side kSide>
  __device__ GroupWords Words(const std::byte* coder, int page, int group) const {
    if constexpr (kParts == 2) {
      if (shared().codes[page][1] != nullptr) {
        float v[kLaneValues];
        GroupWords words[1];
        DecodeParts<kSide>(Part(page, 0, group), Part(page, 1, group),
                           At<float>(coder, Layout().Sd()), group, lane, v);
        FeedWords<kHeadSize, kSide>(coder, group, lane, v, words);
        return words[0];
      }
    }
    return BaseWords(Part(page, 0, group), lane);
  }

  // The values of a page as A fragments.
  template <Side kSide>
  __device__ void Expand(const std::byte* coder, int page) const {
#pragma unroll 1
    for (int step = warp; step < kSteps; step += Shape::kThreads / 32) {
      const GroupWords even = Words<kSide>(coder, page, 2 * step);
      StoreStep<kSide>(lane, step, even, Words<kSide>(coder, page, 2 * step + 1),
                       memory() + Memory::Values());
    }
  }

  // 16 tokens by the 32 channels of the warp.
  __device__ void Multiply(int tile, float (&x)[4][4]) const {
    const auto* values =
        reinterpret_cast<const uint4*>(memory() + Memory::Values()) + tile * 32 + lane;
    const uint32_t used = shared().used;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if ((used >> (2 * step) & 3u) == 0) continue;
      AddProducts(x, values[step * 128], matrix[step][0], matrix[step][1]);
    }
  }

  template <DType kDType>
  __device__ void Deliver(int page) const {
    const PageJob& job = shared().jobs[page];
    const int channel = 32 * (warp % Shape::kBlocks) + 8 * (lane & 3);
    float scale[8], mu[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      scale[i] = shared().scale[channel + i];
      mu[i] = shared().mu[channel + i];
    }
    std::byte* base = shared().rows[page] + ElementBytes(kDType) * channel;
    const int begin = SinkEnd(job), end = job.tokens;
#pragma unroll 1
    for (int i = 0; i < Shape::kTiles; ++i) {
      const int tile = warp / Shape::kBlocks * Shape::kTiles + i;
      float product[4][4] = {};
      Multiply(tile, product);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int token = 16 * tile + 8 * r + (lane >> 2);
        float x[8];
#pragma unroll
        for (int c = 0; c < 8; ++c) x[c] = fmaf(product[c >> 1][2 * r + (c & 1)], scale[c], mu[c]);
        if (token < begin || token >= end) continue;
        StoreChannels(kDType, base, shared().offsets[page][token], x);
      }
    }
  }

  __device__ void DeliverSink(const std::byte* coder, int page, DType dtype) const {
    const PageJob& job = shared().jobs[page];
    DecodeSinkRows(run.kv == 0 ? Side::kKey : Side::kValue, kHeadSize,
                   job.primary + *At<uint32_t>(coder, Layout().PageBytes(0)), SinkEnd(job), dtype,
                   shared().rows[page], shared().offsets[page]);
  }
};

template <int kHeadSize, int kParts>
__device__ void DecodeRun(const Run& run, const PageJobs& jobs, const RowSets& sets,
                          const std::byte* coders) {
  const int thread = static_cast<int>(threadIdx.x);
  RunSide<kHeadSize, kParts> side{coders, run, thread, thread / 32, thread & 31, {}};
  side.Begin(jobs, sets);
  side.BeginCodes(0);
  const std::byte* coder = nullptr;
#pragma unroll 1
  for (int page = 0; page < run.pages; ++page) {
    const PageJob& job = side.shared().jobs[page];
    if (coder != side.Coder(job.coder)) {
      coder = side.Coder(job.coder);
      __syncthreads();
      side.TakeCoder(coder);
    }
    FinishCopies();
    __syncthreads();
    side.BeginCodes(page + 1);
    if (job.broken != 0) continue;
    if (run.kv == 0) {
      side.template Expand<Side::kKey>(coder, page);
    } else {
      side.template Expand<Side::kValue>(coder, page);
    }
    __syncthreads();
    if (sets.dtype == DType::kF16) {
      side.template Deliver<DType::kF16>(page);
    } else {
      side.template Deliver<DType::kBF16>(page);
    }
    if (job.sink != 0) side.DeliverSink(coder, page, sets.dtype);
  }
}

}  // namespace fq
