// RoPE, the engine's cache of K and V, and the first step of attention in one kernel on a GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/attend_launch.h"

namespace fq {

// The tokens of a step. Device memory; elements are FP16, or BF16 if the kernel was compiled for
// it. Strides are in elements and even.
struct RopeInputs {
  int tokens = 0, query_heads = 0, kv_heads = 0;
  const void *q = nullptr, *k = nullptr, *v = nullptr;  // [tokens][heads][d]
  int64_t q_stride = 0, k_stride = 0, v_stride = 0;     // between tokens
  // [positions][d]: cosines of the angles of components c and c + d / 2, then sines.
  const void* cos_sin = nullptr;
  const int64_t* positions = nullptr;  // [tokens], rows of cos_sin
  const int64_t* slots = nullptr;      // [tokens] place in the cache; negative: not kept
  // Slot s: block s / block_tokens, row s % block_tokens.
  void *key_cache = nullptr, *value_cache = nullptr;
  int block_tokens = 0;
  int64_t block_stride = 0, token_stride = 0, head_stride = 0;
  void* rotated_q = nullptr;  // [tokens][query_heads][d], what AttendInputs::q is then
};

// Enqueues one kernel: rotates the query rows that the plan of `workspace` names and prepares them
// as kAttendQueries would (bit for bit), and puts the rotated K and V of all tokens into the cache.
// LaunchAttend without kAttendQueries follows, with `scale` in its inputs too. All d components are
// rotated, in FP32, and rounded once. May start while the kernel before runs, and then reads only
// the plan and the codec set's records. InvalidArgument for sizes and strides out of range.
absl::Status LaunchRope(const AttendKernel& kernel, const AttendWorkspace& workspace,
                        const RopeInputs& inputs, float scale, cudaStream_t stream);

}  // namespace fq
