// Compares base pages with their checksums, ahead of their decoding: at the speed of memory, where
// the blocks that decode would each read the whole page.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/coder_tables.h"
#include "kernels/cuda/page_job.h"

namespace fq {

// Queues it on `stream`. Sets PageJob::broken of every job, and the flags of broken ones.
cudaError_t VerifyBasePages(const CoderTables& coders, const PageJobs& jobs, cudaStream_t stream);

}  // namespace fq
