// The tables of a codec set as the search of the encoder reads them. Shared by the kernels and by
// the host code that fills them (coder_tables.cc).
#pragma once

#include <cstdint>

#include "kernels/codec/page_layout.h"

namespace fq {

// The tables of one side and part; the kernels copy them into shared memory.
struct SearchTables {
  float class4[kTableEntries][2];
  uint32_t class2[kTableEntries];     // chain words
  uint32_t class1[kTableEntries][4];  // pairs of FP16
  // Class 1 as A fragments of mma.m16n8k16, 16 entries each: with B = (x, 1, 1, |x|^2 / 2 in two
  // terms, 0 ..) the products are |x - entry|^2 / 2. Columns 0..7: -entry; 8, 9: |entry|^2 / 2 in
  // two terms; 10, 11: 1; the rest 0.
  uint32_t octet_rows[kTableEntries / 16][32][4];
};
static_assert(sizeof(SearchTables) % 16 == 0);

// Added to |entry|^2 / 2, so that rounding leaves no product negative: halves that are not sort
// like integers.
inline constexpr float kDistanceOffset = 1.0f / 1024;

}  // namespace fq
