// A page's rows in an engine's memory, and the checks and copies that every page kernel needs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/codec/checksum.h"
#include "kernels/codec/float_convert.h"
#include "kernels/codec/page_layout.h"
#include "kernels/codec/quantise.h"
#include "kernels/cuda/page_job.h"
#include "kernels/cuda/warp.cuh"

namespace fq {

// Offset in elements of (token, channel 0) from PagedRows::k or ::v.
__device__ inline int64_t RowOffset(const PagedRows& rows, const PageJob& job, int token) {
  const int position = job.first_token + token, block = position / rows.block_tokens;
  return job.blocks[block] * rows.block_stride +
         (position - block * rows.block_tokens) * rows.token_stride + job.head * rows.head_stride;
}

// Fills offsets[64] in shared memory; tokens beyond the page's are left as they are. Needs a
// barrier before they are read.
__device__ inline void FillRowOffsets(const PagedRows& rows, const PageJob& job, int64_t* offsets) {
  const int token = static_cast<int>(threadIdx.x);
  if (token < job.tokens) offsets[token] = RowOffset(rows, job, token);
}

// Rows that the sink record holds instead of the codes.
__device__ inline int SinkEnd(const PageJob& job) {
  return job.sink == 0 ? 0 : job.tokens < kSinkRows ? job.tokens : kSinkRows;
}

// Eight constants in a row, at a multiple of 16 bytes.
__device__ inline void LoadEight(const float* from, float (&x)[8]) {
  const float4 a = LoadConstant<float4>(from), b = LoadConstant<float4>(from + 4);
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
  x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

// Stores channels [channel, channel + 8) of a row; `row` is that of element (row, 0).
__device__ inline void StoreChannels(DType dtype, std::byte* base, int64_t element,
                                     const float (&x)[8]) {
  if (dtype == DType::kF32) {
    auto* to = reinterpret_cast<float4*>(base + 4 * element);
    to[0] = make_float4(x[0], x[1], x[2], x[3]);
    to[1] = make_float4(x[4], x[5], x[6], x[7]);
    return;
  }
  const bool half = dtype == DType::kF16;
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pairs[i] = half ? PackHalves(x[2 * i], x[2 * i + 1]) : PackBFloat16(x[2 * i], x[2 * i + 1]);
  }
  *reinterpret_cast<uint4*>(base + 2 * element) =
      make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// Channels [channel, channel + 8) of a row as they lie in memory; FP32 takes both halves.
struct RawChannels {
  uint4 half[2];
};

__device__ inline RawChannels LoadRaw(DType dtype, const std::byte* base, int64_t element) {
  const auto* from = reinterpret_cast<const uint4*>(base + ElementBytes(dtype) * element);
  RawChannels raw = {};
  raw.half[0] = from[0];
  if (dtype == DType::kF32) raw.half[1] = from[1];
  return raw;
}

// Two elements of 16 bits as FP32, low half first.
__device__ inline void WidenPair(DType dtype, uint32_t pair, float* x) {
  const float2 wide = dtype == DType::kF16 ? WidenHalves(pair)
                                           : make_float2(FloatFromBits(pair << 16),
                                                         FloatFromBits(pair & 0xFFFF0000u));
  x[0] = wide.x;
  x[1] = wide.y;
}

// The same as FP32, NaN and all.
__device__ inline void WidenRaw(DType dtype, const RawChannels& raw, float (&x)[8]) {
  const uint32_t words[8] = {raw.half[0].x, raw.half[0].y, raw.half[0].z, raw.half[0].w,
                             raw.half[1].x, raw.half[1].y, raw.half[1].z, raw.half[1].w};
  if (dtype == DType::kF32) {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = FloatFromBits(words[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) WidenPair(dtype, words[i], x + 2 * i);
}

__device__ inline void LoadChannels(DType dtype, const std::byte* base, int64_t element,
                                    float (&x)[8]) {
  WidenRaw(dtype, LoadRaw(dtype, base, element), x);
}

// Checksum of `bytes` bytes at `page` by the whole thread block; every thread gets it. `scratch` is
// u64 [32] of shared memory. Holds two barriers.
__device__ inline uint64_t BlockChecksum(const std::byte* page, int bytes, uint64_t* scratch) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const auto* words = reinterpret_cast<const ulonglong2*>(page);
  uint64_t sum = 0;
  for (int i = thread; i < bytes / 16; i += threads) {
    const ulonglong2 pair = words[i];
    sum += ChecksumWord(2 * i, pair.x) + ChecksumWord(2 * i + 1, pair.y);
  }
  for (int mask = 16; mask > 0; mask >>= 1) sum += FromLaneXor(sum, mask);
  __syncthreads();
  if ((thread & 31) == 0) scratch[thread >> 5] = sum;
  __syncthreads();
  sum = 0;
  for (int warp = 0; warp < threads / 32; ++warp) sum += scratch[warp];
  return ChecksumFinish(sum, bytes);
}

// Compares the checksums of a job's pages where the caller has them; true when all fit, else sets
// the job's flag. The sizes are those of the pages in bytes.
__device__ inline bool VerifyPages(const PageJobs& jobs, const PageJob& job, int primary_bytes,
                                   int refinement_bytes, uint64_t* scratch) {
  int broken = 0;
  if (job.primary_checksum != nullptr) {
    const uint64_t found = BlockChecksum(job.primary, primary_bytes, scratch);
    broken |= found != *job.primary_checksum ? 1 : 0;
  }
  if (job.refinement_checksum != nullptr && job.refinement != nullptr) {
    const uint64_t found = BlockChecksum(job.refinement, refinement_bytes, scratch);
    broken |= found != *job.refinement_checksum ? 2 : 0;
  }
  if (broken != 0 && jobs.broken != nullptr && threadIdx.x == 0) {
    jobs.broken[job.flag] = static_cast<uint8_t>(broken);
  }
  return broken == 0;
}

// Writes the checksums that the caller asks for. After a page's bytes have been stored by any
// thread of the block.
__device__ inline void WriteChecksums(const PageJob& job, int primary_bytes, int refinement_bytes,
                                      uint64_t* scratch) {
  __syncthreads();
  if (job.primary_checksum != nullptr) {
    const uint64_t checksum = BlockChecksum(job.primary, primary_bytes, scratch);
    if (threadIdx.x == 0) *job.primary_checksum = checksum;
  }
  if (job.refinement_checksum != nullptr && job.refinement != nullptr) {
    const uint64_t checksum = BlockChecksum(job.refinement, refinement_bytes, scratch);
    if (threadIdx.x == 0) *job.refinement_checksum = checksum;
  }
}

// Codes a row of the sink record; a warp does it. Rows that the page does not have are 0.
__device__ inline void EncodeSinkRow(int head_size, DType dtype, const std::byte* row, int lane,
                                     int8_t* codes, float* scale) {
  float x[8] = {}, largest = 0.0f;
  if (row != nullptr && 8 * lane < head_size) LoadChannels(dtype, row, 8 * lane, x);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    x[i] = Sanitised(x[i]);
    largest = fmaxf(largest, fabsf(x[i]));
  }
  for (int mask = 16; mask > 0; mask >>= 1) largest = fmaxf(largest, FromLaneXor(largest, mask));
  const float step = SinkScale(largest);
  if (lane == 0) *scale = step;
  if (8 * lane >= head_size) return;
#pragma unroll
  for (int i = 0; i < 8; ++i) codes[8 * lane + i] = SinkCode(x[i], step);
}

// Writes the sink record of a page.
__device__ inline void EncodeSinkRows(int head_size, DType dtype, const PagedRows& rows,
                                      const PageJob& job, const int64_t* offsets,
                                      std::byte* record) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  for (int i = static_cast<int>(threadIdx.x) / 32; i < 2 * kSinkRows;
       i += static_cast<int>(blockDim.x) / 32) {
    const int row = i % kSinkRows;
    const Side side = i < kSinkRows ? Side::kKey : Side::kValue;
    const auto* base = static_cast<const std::byte*>(i < kSinkRows ? rows.k : rows.v);
    const std::byte* from = row < job.tokens ? base + ElementBytes(dtype) * offsets[row] : nullptr;
    EncodeSinkRow(head_size, dtype, from, lane,
                  reinterpret_cast<int8_t*>(record + SinkRowOffset(side, row, head_size)),
                  reinterpret_cast<float*>(record + SinkScaleOffset(side, row, head_size)));
  }
}

// Delivers the rows of a sink record, of one side.
__device__ inline void DecodeSinkRows(Side side, int head_size, const std::byte* record, int rows,
                                      DType dtype, std::byte* base, const int64_t* offsets) {
  const int chunks = head_size / 8;
  for (int i = static_cast<int>(threadIdx.x); i < rows * chunks;
       i += static_cast<int>(blockDim.x)) {
    const int row = i / chunks, channel = i % chunks * 8;
    const auto* codes =
        reinterpret_cast<const int8_t*>(record + SinkRowOffset(side, row, head_size) + channel);
    const float scale =
        *reinterpret_cast<const float*>(record + SinkScaleOffset(side, row, head_size));
    float x[8];
#pragma unroll
    for (int c = 0; c < 8; ++c) x[c] = SinkValue(codes[c], scale);
    StoreChannels(dtype, base, offsets[row] + channel, x);
  }
}

}  // namespace fq
