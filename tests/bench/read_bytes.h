// The fastest a GPU can be at anything that reads `bytes` bytes once: a kernel that does nothing
// else.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace fq {

// Enqueues a read of `bytes` bytes (a multiple of 16) at `from`, aligned to 16. `sink` is a word of
// device memory that is never written; the compiler cannot know.
cudaError_t LaunchReadBytes(const std::byte* from, size_t bytes, uint32_t* sink,
                            cudaStream_t stream);

}  // namespace fq
