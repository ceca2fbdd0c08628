// How far a base page is from the rows that it was made of: the error that `expected_error` of a
// codec set predicts (FORMAT.md section 7). On the CPU, whichever backend encoded.
#pragma once

#include <cstddef>

#include "kernels/backend.h"

namespace fq {

struct ErrorTask {
  SourcePage source;  // the rows as they were encoded, in host memory; may have changed since
  int layer = 0, head = 0;
  int tokens = kBlockTokens;  // 1..64
  bool sink = false;
  const std::byte* primary = nullptr;     // base page, in host memory
  const std::byte* refinement = nullptr;  // null: the error of base alone
};

// Sums over the rows that the codes deliver (not those of the sink record): weight (u - v)^2 and
// weight u^2. 0: K, 1: V.
struct PageError {
  double error[2] = {0, 0};
  double energy[2] = {0, 0};
};

// Pure function, any thread; `context.codec_set` is not null and the task is trusted, as in
// Backend. Up to 300 KiB of scratch on the stack.
PageError MeasureError(const Backend::Context& context, const ErrorTask& task);

}  // namespace fq
