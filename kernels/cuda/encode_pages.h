// Encodes an engine's paged keys and values into pages in device memory.
#pragma once

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "kernels/cuda/coder_tables.h"
#include "kernels/cuda/page_job.h"

namespace fq {

// Queues the encoding of `jobs` on `stream` and returns. `kind` of the primary pages: kExact, kBase
// (with the refinements of the jobs that have one) or kUniversal; `rows` is only read. `coders` is
// needed for kBase and may be null otherwise. What the arguments point at must live until the
// stream has done it. InvalidArgument for a head size that does not exist; Internal with the name
// of the CUDA call that failed.
//
// Codes are the CPU's except where two entries are nearly equally near: distances of the classes 2
// and 1 are FP16 (2^-9 of them decides nothing), a candidate list may lack an entry that is nearest
// in a corner of its cell, and the sums of the transform have another order. FP16 rows meet the
// transform as they are, others as FP16 scaled by a power of two. A NaN counts as the FP16 nearest
// to the mean, and rows end at 65504 (or what their scale leaves of it).
absl::Status EncodePages(PageKind kind, int head_size, const CoderTables* coders,
                         const PageJobs& jobs, const RowSets& rows, cudaStream_t stream);

}  // namespace fq
