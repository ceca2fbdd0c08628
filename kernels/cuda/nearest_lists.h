// Candidate lists: for each cell of a grid over the values of a byte, the entries that can be
// nearest there. The encoder looks at these alone and still finds the nearest of all 256. Shared by
// the kernels and by the host code that makes the lists.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/base/host_device.h"
#include "kernels/codec/page_layout.h"

namespace fq {

// The grid of class `bits` (4 or 2): `levels` cells along each value, the outer ones open up to
// kListLimit; values beyond it find no list. A list is `bytes` long: the entries in rising order,
// the last one repeated; where they are too many it starts with kNoList.
struct ListGrid {
  int values, levels, bytes;
  float width;  // of a cell in the coded domain, whose values are about unit Gaussian

  FQ_HD constexpr int Cells() const {
    int cells = 1;
    for (int i = 0; i < values; ++i) cells *= levels;
    return cells;
  }
  FQ_HD constexpr int Bytes() const { return Cells() * bytes; }
};
FQ_HD constexpr ListGrid GridOf(int bits) {
  return bits == 4 ? ListGrid{2, 64, 8, 0.095f} : ListGrid{4, 12, 16, 0.38f};
}

inline constexpr float kListLimit = 16.0f;

inline constexpr uint32_t kNoList = 1;  // no rising entries

// Offsets in bytes of the lists of a coder: by part, then class.
FQ_HD constexpr int ListBytes() { return GridOf(4).Bytes() + GridOf(2).Bytes(); }
FQ_HD constexpr int ListOffset(int part, int bits) {
  return part * ListBytes() + (bits == 4 ? 0 : GridOf(4).Bytes());
}

}  // namespace fq
