// Starts the kernels of attention, one of which may begin before the one before it has ended.
#pragma once

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "kernels/cuda/cuda_status.h"

#ifdef FQ_EMULATED
#include <cuda_emulation.h>
#endif

namespace fq {

inline constexpr float kLog2E = 1.4426950408889634f;

struct Launch {
  const void* function;
  int blocks, threads, shared_bytes;
  bool overlaps;  // may start before the kernel before it has finished
};

// `params` is the kernel's only parameter.
template <typename Params>
absl::Status LaunchKernel(const Launch& launch, const Params& params, cudaStream_t stream) {
#ifdef FQ_EMULATED
  static_cast<void>(stream);
  const auto kernel = reinterpret_cast<void (*)(Params)>(const_cast<void*>(launch.function));
  emulation::RunGrid(launch.blocks, launch.threads, launch.shared_bytes, [&] { kernel(params); });
#else
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(launch.blocks);
  config.blockDim = dim3(launch.threads);
  config.dynamicSmemBytes = launch.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = launch.overlaps ? 1 : 0;
  void* arguments[] = {const_cast<Params*>(&params)};
  FQ_RETURN_IF_CUDA_ERROR(cudaLaunchKernelExC(&config, launch.function, arguments));
#endif
  return absl::OkStatus();
}

}  // namespace fq
