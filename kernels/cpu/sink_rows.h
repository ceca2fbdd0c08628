// The sink record: the first 16 rows of a sequence as int8 with a scale per row (FORMAT.md section
// 5). Pure functions, callable from any thread.
#pragma once

#include <cstddef>

#include "kernels/codec/page_layout.h"

namespace fq {

// Codes rows 0..15 of x [head_size][64] (as loaded: NaN and outliers allowed) into `record`.
void EncodeSinkRows(Side side, int head_size, const float* x, std::byte* record);

// Writes rows 0..15 of x [head_size][64]; the other rows are left as they are.
void DecodeSinkRows(Side side, int head_size, const std::byte* record, float* x);

}  // namespace fq
