// Where the parts of a codec set lie in device memory: one record per (layer, kv head). Shared by
// the kernels and by the host code that fills it (tables_device.cc). Pure functions; also compiled
// at run time, so it includes nothing but headers that are.
#pragma once

#include "kernels/base/host_device.h"

namespace fq {

// Lookups of one part (0 = base, 1 = refinement), in u32 words: entry `byte` of side `kv` (0 = K,
// 1 = V) is row 2 * byte + kv, so that one address serves both sides with an immediate offset.
inline constexpr int kClass4Words = 0;     // u32[256][2]: two FP16
inline constexpr int kClass2Words = 512;   // u32[256][2]: chain word
inline constexpr int kClass1Words = 1024;  // u32[256][2][2]: two chain words
inline constexpr int kLookupWords = 2048;  // of one part

// Offsets in bytes of the parts of a record. Every part starts at a multiple of 16.
struct TablesLayout {
  int head_size;

  FQ_HD constexpr int Vector() const { return 4 * head_size; }
  FQ_HD constexpr int Matrix() const { return 4 * head_size * head_size; }
  FQ_HD constexpr int Lookups(int part) const { return 4 * kLookupWords * part; }
  FQ_HD constexpr int Mu(int kv) const { return Lookups(2) + kv * Vector(); }  // f32[d]
  FQ_HD constexpr int Sd(int kv) const { return Mu(2) + kv * Vector(); }       // f32[d]
  // f32[d]: what a component's codes are worth in units of the coded domain when attention reads
  // them: 1, or the step of class 8; for part 1 times sd.
  FQ_HD constexpr int Unit(int kv, int part) const { return Sd(2) + (2 * kv + part) * Vector(); }
  // f32[d]: 1 where the class of the part is 8, else 0.
  FQ_HD constexpr int IsClass8(int part) const { return Unit(2, 0) + part * Vector(); }
  // u8[32]: classes of part and side.
  FQ_HD constexpr int Classes(int kv, int part) const { return IsClass8(2) + (2 * kv + part) * 32; }
  FQ_HD constexpr int A(int kv) const { return Classes(2, 0) + kv * Matrix(); }  // f32[d][d]
  FQ_HD constexpr int AInverse(int kv) const { return A(2) + kv * Matrix(); }    // f32[d][d]
  // FP16 [d/16][d/16][32][8]: A fragments of mma.m16n8k16, tile by tile, eight FP16 a lane: of
  // Ai_K transposed (queries into the coded domain) and of Ai_V (outputs out of it).
  FQ_HD constexpr int QueryFragments() const { return AInverse(2); }
  FQ_HD constexpr int OutputFragments() const { return QueryFragments() + Matrix() / 2; }
  // FP16 [d/16][32][8]: what rounding to FP16 takes from the first row of tiles of QueryFragments.
  FQ_HD constexpr int QueryRemainder() const { return OutputFragments() + Matrix() / 2; }
  FQ_HD constexpr int Bytes() const { return QueryRemainder() + 32 * head_size; }
};

// Row and column within a 16 x 16 tile of half `e` (0, 1) of register `r` (0..3) of a lane: the A
// fragment of mma.m16n8k16.
struct FragmentCell {
  int row, column;
};
FQ_HD constexpr FragmentCell FragmentCellOf(int lane, int r, int e) {
  return {(lane >> 2) + 8 * (r & 1), 2 * (lane & 3) + 8 * (r >> 1) + e};
}

static_assert(TablesLayout{64}.Bytes() % 16 == 0 && TablesLayout{96}.Bytes() % 16 == 0);

}  // namespace fq
