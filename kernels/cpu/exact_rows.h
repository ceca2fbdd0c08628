// Exact pages: rows copied as they are between a caller's memory and a page, every bit kept.
// Pure functions, callable from any thread.
#pragma once

#include <cstddef>

#include "kernels/codec/page_layout.h"
#include "kernels/params.h"

namespace fq {

// Element type and size of the rows, and how many tokens the page holds (1..64).
struct ExactShape {
  DType dtype = DType::kF16;
  int head_size = 64;
  int tokens = kPageTokens;
};

// Copies the rows of one side into `page`; rows beyond `tokens` become zero bytes.
void EncodeExactRows(Side side, const ExactShape& shape, const SourceRows& rows, std::byte* page);
// Copies the first `tokens` rows of one side out of `page`.
void DecodeExactRows(Side side, const ExactShape& shape, const std::byte* page,
                     const TargetRows& rows);
// One side of an exact page as rows in memory.
SourceRows ExactRows(Side side, const ExactShape& shape, const std::byte* page);

}  // namespace fq
