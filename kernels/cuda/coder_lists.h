// Makes the candidate lists of the encoder's search on a device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "absl/status/status.h"
#include "kernels/cuda/nearest_lists.h"

namespace fq {

// Fills lists [count][2][ListBytes()] for `count` coders on `stream`; all in device memory.
absl::Status MakeCandidateLists(const std::byte* coders, int count, int head_size, std::byte* lists,
                                cudaStream_t stream);

}  // namespace fq
