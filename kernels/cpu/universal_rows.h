// Rows of the universal codec: transform, norms and 4-bit codes of one side of a page (FORMAT.md
// section 6). The loops are the same for every backend: they run over tokens and hold nothing that
// a compiler could reorder. Pure functions, callable from any thread.
#pragma once

#include <cstddef>

#include "kernels/codec/page_layout.h"

namespace fq {

// Codes x [head_size][64] (as loaded; overwritten) into `page`, a whole universal page.
void EncodeUniversalRows(Side side, int head_size, float* x, std::byte* page);

// The coded domain: levels v [head_size][64].
void DecodeUniversalLevels(Side side, int head_size, const std::byte* page, float* v);

// In place: levels to rows, x = norm * (H v).
void InverseUniversalRows(Side side, int head_size, const std::byte* page, float* v);

}  // namespace fq
