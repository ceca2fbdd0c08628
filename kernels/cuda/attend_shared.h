// Shared memory of the attention kernel, for host and device. Also compiled at run time.
#pragma once

#include "kernels/cuda/attend_params.h"
#include "kernels/cuda/tables_layout.h"

namespace fq {

// Dynamic shared memory starts here in the shared window; the kernel checks it. Lookups are one
// instruction because their address is a code byte, a lane, and a constant.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
inline constexpr int kSharedBase = 0;
#else
inline constexpr int kSharedBase = 1024;  // behind what the system keeps for itself
#endif

// The tables of a head. A replicated table has 256 rows of 256 bytes, K in the first half of a row
// and V in the second, repeated for every lane (entries of 8 bytes: for 16 lanes), so that no two
// lanes meet in a bank. A plain one is as in the record. Three replicated tables fit: of class 2
// and class 4, and of class 1, or of the refinement's class 2 in kernels that read refinements.
inline constexpr int kReplicatedBytes = 65536;
inline constexpr int kSharedClass2 = 0;
inline constexpr int kSharedClass4 = kReplicatedBytes;
inline constexpr int kSharedThird = 2 * kReplicatedBytes;
inline constexpr int kSharedRefinement = 3 * kReplicatedBytes;  // plain, all classes
inline constexpr int kSharedPlainClass1 = kSharedRefinement + 4 * kLookupWords;
FQ_HD constexpr int SharedTables(bool refined) {
  return refined ? kSharedPlainClass1 + 4 * (kLookupWords - kClass1Words) : kSharedRefinement;
}

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
FQ_HD constexpr int AttendSharedBytes(int head_size, bool refined) {
  const int partials = PartialsLayout{head_size}.Bytes(), tables = SharedTables(refined);
  return tables > partials ? tables : partials;
}

}  // namespace fq
