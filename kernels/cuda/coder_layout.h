// Where the parts of a coder lie in device memory. A coder is all that encode and decode need of
// one (layer, kv head, K|V). Shared by the kernels and by the host code that fills it
// (coder_tables.cc). Pure functions.
//
// The transforms are FP16 in two terms: M = high + low, which leaves 2^-22 of an element. Powers of
// two keep the elements in the range of FP16. Rows of FP16 meet A as they are; others are scaled by
// a power of two first.
#pragma once

#include <cstddef>

#include "kernels/base/host_device.h"
#include "kernels/codec/page_layout.h"
#include "kernels/cuda/nearest_tables.h"

namespace fq {

inline constexpr int kPartWords = 1024;  // u32: class4 [256], class2 [256], class1 [256][2]

// First word of the table of a class (4, 2 or 1) in a part.
FQ_HD constexpr int TableWord(int bits) { return bits == 4 ? 0 : bits == 2 ? 256 : 512; }

// Offsets in bytes within a coder; every part starts at a multiple of 16.
struct CoderLayout {
  int head_size;

  FQ_HD constexpr int Steps() const { return head_size / 16; }
  FQ_HD constexpr int Vector() const { return 4 * head_size; }
  // u8 [32]: class of each group. Part 0 is base, 1 refinement.
  FQ_HD constexpr int Classes(int part) const { return part * kMaxGroups; }
  // u16 [32]: where the codes of each group start in the page.
  FQ_HD constexpr int Starts(int part) const { return Classes(2) + part * 2 * kMaxGroups; }
  // u32: bytes of the codes of K and V.
  FQ_HD constexpr int PageBytes(int part) const { return Starts(2) + 4 * part; }
  // f32 [2]: the power of two that rows which are not FP16 are multiplied with, and 1 / that.
  FQ_HD constexpr int RowScale() const { return PageBytes(2); }
  FQ_HD constexpr int Mu() const { return RowScale() + 8; }  // f32 [d], by channel
  // u = ComponentScale * (A scaled) x + ComponentBias for FP16 rows x.
  FQ_HD constexpr int ComponentScale() const { return Mu() + Vector(); }
  FQ_HD constexpr int ComponentBias() const { return ComponentScale() + Vector(); }
  FQ_HD constexpr int Sd() const { return ComponentBias() + Vector(); }
  // f32 [d], by component: what a decoded value is multiplied with so that FP16 holds every base
  // value: 1, or 1 / step of class 8.
  FQ_HD constexpr int Feed() const { return Sd() + Vector(); }
  // x = OutputScale * (Ai scaled) (Feed v) + mu, by channel.
  FQ_HD constexpr int OutputScale() const { return Feed() + Vector(); }
  // u32 [1024] of a part, as in the codec set.
  FQ_HD constexpr int Tables(int part) const {
    return OutputScale() + Vector() + part * 4 * kPartWords;
  }
  // SearchTables of a part.
  FQ_HD constexpr int Search(int part) const {
    return Tables(2) + part * static_cast<int>(sizeof(SearchTables));
  }
  FQ_HD constexpr int FragmentBytes() const { return 2 * 2 * head_size * head_size; }
  // A in 16 x 16 tiles [d/16 components][d/16 channel steps][2 terms][32 lanes] of 16 bytes, whose
  // words lie as ForwardWord says.
  FQ_HD constexpr int Forward() const { return Search(2); }
  // Ai in [d/32 channel blocks][d/16 component steps][2 terms][2][32 lanes] of 16 bytes: two of
  // four tiles. Column c of tile j is channel 8 (c / 2) + 2 j + c % 2 of its block, so that the
  // columns of a lane are 8 channels in a row.
  FQ_HD constexpr int Inverse() const { return Forward() + FragmentBytes(); }
  FQ_HD constexpr size_t Bytes() const { return Inverse() + FragmentBytes(); }
};

// Where word `r` of an A fragment lies in the 16 bytes of a lane. A matrix is the A operand of the
// MMAs of V, and rows are that of K; what is the B operand has the words of a column side by side.
FQ_HD constexpr int FragmentWord(bool is_a, int r) { return is_a ? r : r >> 1 | (r & 1) << 1; }

static_assert(CoderLayout{64}.Mu() % 16 == 0 && CoderLayout{96}.Bytes() % 16 == 0);

}  // namespace fq
