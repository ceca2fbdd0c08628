// What the attention kernels read and write, for host and device. Plain structs; also compiled at
// run time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/host_device.h"

namespace fq {

inline constexpr int kAttendRows = 8;  // query rows of one task: a column each of the MMA
inline constexpr float kNoMaximum = -1e30f;

// Warps of a thread block, one block on a multiprocessor: what is left of the registers. With 12
// warps of 168 registers head size 256 spills them and is slower (measured: 154 us where 8 warps
// take 88).
FQ_HD constexpr int AttendWarps(int head_size) { return head_size > 128 ? 8 : 12; }

// What a piece of work reads. Values from kAttendFirstProfile on name a compiled profile.
inline constexpr int kAttendExact = 0;  // rows as they came
inline constexpr int kAttendSink = 1;   // the int8 rows of a sink record
inline constexpr int kAttendFirstProfile = 2;

// A task is up to 8 query rows of one (sequence, kv head). A piece is what one warp does of it:
// consecutive pages of one kind.
struct AttendPiece {
  int32_t task;
  int32_t code;         // kAttendExact, kAttendSink, or kAttendFirstProfile + profile
  int32_t table_begin;  // of its first page, in AttendParams::pages
  int32_t page_count;
  int32_t token_begin;  // first token that counts, from the start of its first page
  int32_t token_end;    // one past the last that counts, likewise
  int32_t slot;         // where its partial result goes
  int32_t next;         // the warp's next piece, or -1
  uint32_t offset;      // of the page (exact, base) or of the sink record, in bytes, in a slab
  uint32_t refinement_offset;
  int32_t bytes;  // that are read of each page, and of each refinement
  int32_t refinement_bytes;
};
static_assert(sizeof(AttendPiece) == 48, "read as three 16-byte words");

// Query rows of a task as the kernels want them. d = head size.
struct AttendQueryLayout {
  int head_size;
  FQ_HD constexpr int Rows() const { return kAttendRows * head_size * 2; }
  // Within such rows: the B fragments of two MMA steps (16 components each) are four words of a
  // lane, so that a warp reads them as 512 bytes in a row.
  FQ_HD constexpr int Element(int row, int component) const {
    const int lane = row * 4 + component % 8 / 2;
    const int word = component / 32 * 128 + lane * 4 + component / 8 % 4;
    return 4 * word + 2 * (component % 2);
  }
  // FP16 [8][d], coded domain, times scale * log2(e): for base, and for refinement (times sd).
  FQ_HD constexpr int Coded(int part) const { return part * Rows(); }
  // Element type [8][d]: the rows themselves.
  FQ_HD constexpr int Plain() const { return 2 * Rows(); }
  // f32[d / 16][8], what to add to a score, in shares: of base pages alone, of base and refinement.
  FQ_HD constexpr int Bias(int parts) const {
    return 3 * Rows() + (parts - 1) * head_size / 16 * kAttendRows * 4;
  }
  // FP16 [8][32]: the first 16 components of Coded(0), and what rounding to FP16 took from them.
  // Most of a score comes from these components, and so would most of its error (DECISIONS.md).
  FQ_HD constexpr int First() const { return Bias(3); }
  FQ_HD constexpr int Bytes() const { return First() + 512; }
};

struct AttendParams {
  const AttendPiece* pieces;        // [warps of the grid] first pieces, then the others
  const std::byte* const* records;  // [blocks] codec-set record (tables_layout.h); null = no codes
  const std::byte* pool;            // what the page tables count from
  const uint32_t* pages;            // where slabs' pages begin, in 64 bytes, block by block
  const uint32_t* refinements;      // likewise, of their refinements
  const std::byte* queries;         // [tasks] AttendQueryLayout
  float* values;                    // [slots][d / 16][32][4] sums of weight * value
  float* stats;                     // [slots][8][2] maximum (log2), sum of weights
  uint32_t zero;                    // 0; the compiler must not know (LaneAfter)
  float scale;                      // softmax scale * log2(e), for rows that are not coded
};

// A task as the kernels before and after attention see it. Its partial results are neighbours:
// those of coded pages first, then those of plain rows.
struct AttendTaskInfo {
  const std::byte* record;  // codec-set record of the kv head; null when nothing is coded
  int32_t slot_begin, coded_count, plain_count;
  int32_t refined;            // 1 where some pages have refinements
  int32_t rows[kAttendRows];  // of q, out and lse; -1 = none
};

}  // namespace fq
