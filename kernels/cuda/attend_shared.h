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

// One of the tables that a code of class 4, 2 or 1 is looked up in; part 0 = base, 1 = refinement.
FQ_HD constexpr int TableIndex(int part, int bits) {
  return 3 * part + (bits == 4 ? 0 : bits == 2 ? 1 : 2);
}

// Where the tables of a head lie. A replicated table has 256 rows of 256 bytes, K in the first half
// of a row and V in the second, repeated for every lane (entries of 8 bytes: for 16 lanes), so that
// no two lanes meet in a bank. As many tables are replicated as the device has room for, those that
// most lookups go to first; the others follow, plain: of base, then of refinement, K before V.
// What shared memory does not take is L1, and codes on their way need that: no table is kept that
// no profile reads.
struct AttendTables {
  int replicated;     // 1 to kMostReplicated tables
  bool refined;       // the kernel reads refinements
  int needed = 0x3F;  // bits: TableIndex

  FQ_HD constexpr bool Needed(int part, int bits) const {
    return (refined || part == 0) && (needed >> TableIndex(part, bits) & 1) != 0;
  }
  // Of the table of part and class; -1 when it is plain.
  FQ_HD constexpr int Replicated(int part, int bits) const {
    const int place = Rank(part, bits);
    return place < replicated ? place * kReplicatedBytes : -1;
  }
  FQ_HD constexpr int Plain(int side, int part, int bits) const {
    return PlainBefore(TableIndex(part, bits)) + side * (bits == 1 ? 2048 : 1024);
  }
  // f32[d]: what refinements of V are worth, behind the tables where there are refinements.
  FQ_HD constexpr int Ratios() const { return PlainBefore(6); }
  FQ_HD constexpr int Bytes(int head_size) const { return Ratios() + refined * 4 * head_size; }

 private:
  // Measured (PERFORMANCE.md): beside refinements a plain class 4 costs less than a plain class 1.
  FQ_HD constexpr int Rank(int part, int bits) const {
    if (part == 1) return bits == 2 ? 0 : kMostReplicated;
    if (refined) return bits == 2 ? 1 : bits == 1 ? 2 : kMostReplicated;
    return bits == 2 ? 0 : bits == 4 ? 1 : 2;
  }
  FQ_HD constexpr int PlainBefore(int index) const {
    int at = replicated * kReplicatedBytes;
    for (int i = 0; i < index; ++i) {
      const int part = i / 3, bits = 4 >> i % 3;
      if (Needed(part, bits) && Replicated(part, bits) < 0) at += bits == 1 ? 4096 : 2048;
    }
    return at;
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
  const int partials = PartialsLayout{head_size}.Bytes(), bytes = tables.Bytes(head_size);
  return bytes > partials ? bytes : partials;
}

// The most replicated tables with which a block takes no more than `limit` bytes, whatever tables
// are needed; 0 = none.
FQ_HD constexpr int ReplicatedThatFit(int head_size, bool refined, int limit) {
  int count = kMostReplicated;
  while (count > 0 && AttendSharedBytes(head_size, {count, refined}) > limit) --count;
  return count;
}

}  // namespace fq
