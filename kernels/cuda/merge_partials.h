// Attention over parts of a sequence put together: encoded pages, and the tokens that only the
// engine holds. On a GPU.
#pragma once

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace fq {

inline constexpr int kMaxPartials = 8;

// Attention of the same query rows over one part. Device memory.
struct AttendPartial {
  const void* out = nullptr;   // [rows][head_size], FP16 or BF16
  const float* lse = nullptr;  // [rows] natural logarithm; minus infinity = a part without tokens
};

struct MergedRows {
  int rows = 0, head_size = 0;
  bool bf16 = false;     // of the partials and of `out`
  void* out = nullptr;   // [rows][head_size]; may be that of a partial
  float* lse = nullptr;  // [rows]; likewise
};

// Enqueues out = sum of partials weighted by exp(lse), and the log-sum-exp of all, added up in the
// order of the partials: same inputs give the same bits. A row without tokens in any part is zero.
// InvalidArgument for other than 1 to kMaxPartials partials, or an odd or negative size.
absl::Status MergePartials(absl::Span<const AttendPartial> partials, const MergedRows& to,
                           cudaStream_t stream);

}  // namespace fq
