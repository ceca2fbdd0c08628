// Candidate lists: for each cell of a grid over the values of a byte, the entries that are nearest
// somewhere in it. The encoder looks at these alone. Shared by the kernels and by the host code
// that makes the lists.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/base/host_device.h"
#include "kernels/codec/page_layout.h"

namespace fq {

// The grid of class `bits` (4 or 2): `levels` cells along each value, the outer ones open up to
// kListLimit; values beyond it find no list. A list is `bytes` long: the entries in rising order,
// the last one repeated; where they are too many it starts with kNoList. `points` along each value
// of a cell, from edge to edge, decide which entries are in it.
struct ListGrid {
  int values, levels, bytes, points;
  float width;  // of a cell in the coded domain, whose values are about unit Gaussian

  FQ_HD constexpr int Power(int base) const {
    return values == 2 ? base * base : base * base * base * base;
  }
  FQ_HD constexpr int Cells() const { return Power(levels); }
  FQ_HD constexpr int Points() const { return Power(points); }
  FQ_HD constexpr int Bytes() const { return (Cells() * bytes + 15) / 16 * 16; }
};
FQ_HD constexpr ListGrid GridOf(int bits) {
  return bits == 4 ? ListGrid{2, 96, 4, 12, 0.065f} : ListGrid{4, 14, 8, 4, 0.34f};
}

inline constexpr float kListLimit = 4.5f;

// Of the points of a cell, how many may be nearest to an entry that its list has no room for: one
// in so many.
inline constexpr int kLeftOut = 32;

inline constexpr uint32_t kNoList = 1;  // no rising entries

// Offsets in bytes of the lists of a coder: by part, then class.
FQ_HD constexpr int ListBytes() { return GridOf(4).Bytes() + GridOf(2).Bytes(); }
FQ_HD constexpr int ListOffset(int part, int bits) {
  return part * ListBytes() + (bits == 4 ? 0 : GridOf(4).Bytes());
}

}  // namespace fq
