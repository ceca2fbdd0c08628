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

inline constexpr int kReplicatedBytes = 65536;  // of a replicated table
inline constexpr int kMostReplicated = 3;

// Where the tables of a head lie. A replicated table has 256 rows of 256 bytes, K in the first half
// of a row and V in the second, repeated for every lane (entries of 8 bytes: for 16 lanes), so that
// no two lanes meet in a bank. As many tables are replicated as the device has room for, those that
// most lookups go to first; the others follow, plain: of base, then of refinement, K before V.
struct AttendTables {
  int replicated;  // 1 to kMostReplicated tables
  bool refined;    // the kernel reads refinements

  // Of the table of part (0 = base, 1 = refinement) and class; -1 when it is plain.
  FQ_HD constexpr int Replicated(int part, int bits) const {
    const int place = Rank(part, bits);
    return place < replicated ? place * kReplicatedBytes : -1;
  }
  FQ_HD constexpr int Plain(int side, int part, int bits) const {
    const int words = bits == 4 ? kClass4Words : bits == 2 ? kClass2Words : kClass1Words;
    const int entries = 256 * (bits == 1 ? 2 : 1);
    return replicated * kReplicatedBytes + 4 * (part * kLookupWords + words + side * entries);
  }
  FQ_HD constexpr int Bytes() const {
    const int plain_parts = refined ? 2 : replicated == kMostReplicated ? 0 : 1;
    return replicated * kReplicatedBytes + plain_parts * 4 * kLookupWords;
  }

 private:
  // Measured (PERFORMANCE.md): beside refinements a plain class 4 costs less than a plain class 1.
  FQ_HD constexpr int Rank(int part, int bits) const {
    if (part == 1) return bits == 2 ? 0 : kMostReplicated;
    if (refined) return bits == 2 ? 1 : bits == 1 ? 2 : kMostReplicated;
    return bits == 2 ? 0 : bits == 4 ? 1 : 2;
  }
};

// What the warps of a block leave for each other lies over the tables when those are done with:
// values f32[warps][d / 16][32][4], stats f32[warps][8][2], slots i32[warps].
struct PartialsLayout {
  int head_size;
  FQ_HD constexpr int Warps() const { return AttendWarps(head_size); }
  FQ_HD constexpr int Values(int warp) const { return warp * head_size * kAttendRows * 4; }
  FQ_HD constexpr int Stats(int warp) const { return Values(Warps()) + warp * kAttendRows * 8; }
  FQ_HD constexpr int Slot(int warp) const { return Stats(Warps()) + warp * 4; }
  FQ_HD constexpr int Bytes() const { return Slot(Warps()); }
};

// Dynamic shared memory of a block, in bytes.
FQ_HD constexpr int AttendSharedBytes(int head_size, AttendTables tables) {
  const int partials = PartialsLayout{head_size}.Bytes();
  return tables.Bytes() > partials ? tables.Bytes() : partials;
}

// The most replicated tables with which a block takes no more than `limit` bytes; 0 = none.
FQ_HD constexpr int ReplicatedThatFit(int head_size, bool refined, int limit) {
  int count = kMostReplicated;
  while (count > 0 && AttendSharedBytes(head_size, {count, refined}) > limit) --count;
  return count;
}

}  // namespace fq
