// How a launch shares its jobs out to thread blocks that work on several pages of one coder in a
// row. Pure functions of integers.
#pragma once

#include "kernels/base/host_device.h"

namespace fq {

inline constexpr int kRunPages = 4;
// Of each side, the last pages are runs of their own, so that all multiprocessors end together.
inline constexpr int kSinglePages = 256;

// Consecutive jobs of one side, 0 = K, 1 = V.
struct Run {
  int kv, first, pages;
};

// The runs of a launch of `count` jobs: long ones of K, of V, then single pages of K, of V.
struct PageRuns {
  int count;

  FQ_HD constexpr int LongOnes() const {  // of a side
    return count > kSinglePages ? (count - kSinglePages) / kRunPages : 0;
  }
  FQ_HD constexpr int Singles() const { return count - LongOnes() * kRunPages; }  // of a side
  FQ_HD constexpr int Size() const { return 2 * (LongOnes() + Singles()); }
  FQ_HD constexpr Run At(int index) const {
    const int longs = LongOnes();
    if (index < 2 * longs) {
      const int kv = index < longs ? 0 : 1;
      return {kv, (index - kv * longs) * kRunPages, kRunPages};
    }
    const int single = index - 2 * longs, kv = single < Singles() ? 0 : 1;
    return {kv, longs * kRunPages + single - kv * Singles(), 1};
  }
};

}  // namespace fq
