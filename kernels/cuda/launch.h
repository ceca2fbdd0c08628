// Starts kernels, checked at compile time against their parameters. Callable from any thread.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#ifdef FQ_EMULATED
#include <cuda_emulation.h>
#endif

namespace fq {

// Shared memory that a thread block may use on every architecture: sm_86, 89 and 120 have least.
inline constexpr size_t kSharedLimit = 99 * 1024;

struct LaunchShape {
  int blocks;
  int threads;
  size_t shared_bytes = 0;  // dynamic shared memory
};

// Starts `kernel` on `stream`. Raises the kernel's limit of dynamic shared memory when it needs to.
template <typename Params>
cudaError_t Launch(void (*kernel)(Params), const LaunchShape& shape, cudaStream_t stream,
                   Params params) {
#ifdef FQ_EMULATED
  static_cast<void>(stream);
  emulation::RunGrid(shape.blocks, shape.threads, shape.shared_bytes, [&] { kernel(params); });
  return cudaSuccess;
#else
  const void* entry = reinterpret_cast<const void*>(kernel);
  constexpr size_t kDefaultLimit = 48 * 1024;
  if (shape.shared_bytes > kDefaultLimit) {
    const cudaError_t error = cudaFuncSetAttribute(
        entry, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  void* arguments[] = {&params};
  return cudaLaunchKernel(entry, dim3(shape.blocks), dim3(shape.threads), arguments,
                          shape.shared_bytes, stream);
#endif
}

}  // namespace fq
