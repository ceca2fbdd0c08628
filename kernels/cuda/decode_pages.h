// Decodes pages in device memory into an engine's paged keys and values.
#pragma once

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "kernels/cuda/coder_tables.h"
#include "kernels/cuda/page_job.h"

namespace fq {

// What is delivered of base pages and their refinements.
enum class Domain {
  kRows,   // keys and values: x = Ai v + mu
  kCoded,  // v itself, component i in the place of channel i; bit for bit as on the CPU
};

struct DecodeOptions {
  PageKind kind = PageKind::kBase;  // of the primary pages: kExact, kBase or kUniversal
  int head_size = 64;
  Domain domain = Domain::kRows;  // kBase only
};

// Queues the decoding of `jobs` on `stream` and returns; `rows` gets tokens [0, job.tokens) of each
// page, and nothing else is written. FP16 and BF16 rows go through FP16 products (rounding like
// that of FP16 rows), FP32 rows through two terms of each. `coders` is needed for kBase and may be
// null otherwise. The pages, `jobs`, `rows` and the coders must live until the stream has done it.
// InvalidArgument for a head size that does not exist; Internal with the name of the CUDA call that
// failed.
absl::Status DecodePages(const DecodeOptions& options, const CoderTables* coders,
                         const PageJobs& jobs, const RowSets& rows, cudaStream_t stream);

}  // namespace fq
