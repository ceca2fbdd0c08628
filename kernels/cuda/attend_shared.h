// Shared memory of the attention kernel, for host and device. Also compiled at run time.
#pragma once

#include "kernels/cuda/attend_params.h"
#include "kernels/cuda/tables_layout.h"

namespace fq {

// Shared memory starts here in the shared window; the kernel checks it. Lookups are one instruction
// because their address is a code byte, a lane, and a constant.
inline constexpr int kSharedBase = 1024;

// The tables of a head. Base tables: 256 rows of 256 bytes, K in the first half of a row and V in
// the second, repeated for every lane (class 1: for 16 lanes), so that no two lanes meet in a bank.
// Refinement tables: as they are, 8 KiB.
inline constexpr int kSharedClass2 = 0;
inline constexpr int kSharedClass4 = 65536;
inline constexpr int kSharedClass1 = 2 * 65536;
inline constexpr int kSharedRefinement = 3 * 65536;
inline constexpr int kSharedTables = kSharedRefinement + 4 * kLookupWords;

// What the warps of a block leave for each other lies over the tables when those are done with:
// values f32[warps][d / 16][32][4], stats f32[warps][8][2], slots i32[warps].
struct PartialsLayout {
  int head_size;
  FQ_HD constexpr int Values(int warp) const { return warp * head_size * kAttendRows * 4; }
  FQ_HD constexpr int Stats(int warp) const {
    return Values(kAttendWarps) + warp * kAttendRows * 8;
  }
  FQ_HD constexpr int Slot(int warp) const { return Stats(kAttendWarps) + warp * 4; }
  FQ_HD constexpr int Bytes() const { return Slot(kAttendWarps); }
};

// Dynamic shared memory of a block, in bytes.
FQ_HD constexpr int AttendSharedBytes(int head_size) {
  return kSharedTables > PartialsLayout{head_size}.Bytes() ? kSharedTables
                                                           : PartialsLayout{head_size}.Bytes();
}

}  // namespace fq
