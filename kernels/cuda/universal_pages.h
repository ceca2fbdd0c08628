// Universal pages; plain_pages.h calls this.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/page_job.h"

namespace fq {

// Encodes or decodes pages of kind universal, bit for bit the CPU's bytes and values. `head_size`
// is one of IsHeadSize; errors are those of the launch. Callable from any thread.
cudaError_t CodeUniversalPages(bool encode, int head_size, const PageJobs& jobs,
                               const RowSets& rows, cudaStream_t stream);

}  // namespace fq
