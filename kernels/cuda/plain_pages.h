// Pages that need no codec set: exact and universal. Same rules as decode_pages.h and
// encode_pages.h, which call these.
#pragma once

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "kernels/cuda/page_job.h"

namespace fq {

// `kind` is kExact or kUniversal; bit for bit the CPU's bytes and values.
absl::Status EncodePlainPages(PageKind kind, int head_size, const PageJobs& jobs,
                              const RowSets& rows, cudaStream_t stream);
absl::Status DecodePlainPages(PageKind kind, int head_size, const PageJobs& jobs,
                              const RowSets& rows, cudaStream_t stream);

}  // namespace fq
