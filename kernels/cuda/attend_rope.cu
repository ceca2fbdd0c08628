#include "kernels/cuda/attend_rope.h"

#include "absl/strings/str_cat.h"
#include "kernels/cuda/attend_rope.cuh"
#include "kernels/cuda/attend_start.h"
#include "kernels/cuda/cuda_status.h"

namespace fq {
namespace {

const void* RopeKernel(int head_size, bool bf16) {
  const auto kernel = [&](auto of) {
    constexpr int kHeadSize = decltype(of)::value;
    return bf16 ? reinterpret_cast<const void*>(&RotateAndAppend<kHeadSize, true>)
                : reinterpret_cast<const void*>(&RotateAndAppend<kHeadSize, false>);
  };
  switch (head_size) {
    case 64:
      return kernel(Int<64>{});
    case 128:
      return kernel(Int<128>{});
    case 256:
      return kernel(Int<256>{});
    default:
      return nullptr;
  }
}

absl::Status CheckInputs(const RopeInputs& inputs) {
  const std::pair<const char*, int64_t> sizes[] = {{"tokens", inputs.tokens},
                                                   {"query_heads", inputs.query_heads},
                                                   {"kv_heads", inputs.kv_heads},
                                                   {"block_tokens", inputs.block_tokens}};
  for (const auto& [name, value] : sizes) {
    if (value < 1) {
      return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, ", not 1 or more"));
    }
  }
  const std::pair<const char*, int64_t> strides[] = {
      {"q_stride", inputs.q_stride},         {"k_stride", inputs.k_stride},
      {"v_stride", inputs.v_stride},         {"block_stride", inputs.block_stride},
      {"token_stride", inputs.token_stride}, {"head_stride", inputs.head_stride}};
  for (const auto& [name, value] : strides) {
    if (value < 0 || value % 2 != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " is ", value, " elements, not an even number from 0 on"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status LaunchRope(const AttendKernel& kernel, const AttendWorkspace& workspace,
                        const RopeInputs& inputs, float scale, cudaStream_t stream) {
  const int d = kernel.head_size();
  const void* function = RopeKernel(d, kernel.bf16());
  if (function == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("head_size is ", d, ", not 64, 128 or 256"));
  }
  FQ_RETURN_IF_ERROR(CheckInputs(inputs));
  RopeParams params = {};
  params.query = {workspace.task_infos(), workspace.tasks(), inputs.rotated_q, workspace.queries(),
                  scale * kLog2E};
  params.q = inputs.q;
  params.k = inputs.k;
  params.v = inputs.v;
  params.cos_sin = inputs.cos_sin;
  params.positions = inputs.positions;
  params.slots = inputs.slots;
  params.rotated_q = inputs.rotated_q;
  params.key_cache = inputs.key_cache;
  params.value_cache = inputs.value_cache;
  params.q_stride = inputs.q_stride / 2;
  params.k_stride = inputs.k_stride / 2;
  params.v_stride = inputs.v_stride / 2;
  params.block_stride = inputs.block_stride / 2;
  params.token_stride = inputs.token_stride / 2;
  params.head_stride = inputs.head_stride / 2;
  params.tokens = inputs.tokens;
  params.query_heads = inputs.query_heads;
  params.kv_heads = inputs.kv_heads;
  params.block_tokens = inputs.block_tokens;
  params.query_blocks = QueryBlocks(d, workspace.tasks());
  constexpr int kRows = kQueryThreads / 32;
  const int rows = inputs.tokens * inputs.kv_heads;
  const int blocks = params.query_blocks + (rows + kRows - 1) / kRows;
  return LaunchKernel({function, blocks, kQueryThreads, 0, true}, params, stream);
}

}  // namespace fq
