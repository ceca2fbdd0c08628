// How an attention call is spread over the warps of a device. Host code without CUDA.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/cuda/attend_params.h"

namespace fq {

// Where a kv head's bytes lie within the pages of a slab, and what a page of it costs.
struct AttendHead {
  int base_code = -1;     // AttendPiece::code of base pages; -1 = has none
  int refined_code = -1;  // of base and refinement
  // Bytes from where the page table says.
  uint32_t exact_offset = 0, base_offset = 0, refinement_offset = 0;
  uint32_t sink_block_offset = 0;  // of the base page in a sink block, where pages are longer
  uint32_t sink_record_offset = 0;
  int exact_bytes = 0, base_bytes = 0, refinement_bytes = 0, sink_record_bytes = 0;
  double base_cost = 100, refined_cost = 250;  // nanoseconds of a multiprocessor
  const std::byte* record = nullptr;           // codec-set record on the device
};

// Pages of one kind that follow each other in the page table.
struct AttendRun {
  enum Kind { kExact, kBase, kRefined, kSinkBase, kSinkRefined, kSinkRecord };
  Kind kind = kBase;
  int table_begin = 0;                 // entry of its first page
  int token_begin = 0, token_end = 0;  // that count, from the start of its first page
};

// A sequence: its pages, and its query rows. Row = (first_row + query) * all query heads + head.
struct AttendSequence {
  std::vector<AttendRun> runs;
  int first_query = 0, queries = 1;
};

// Multiprocessors left to the merge, whose first blocks then fetch their matrices meanwhile. Their
// absence from the attention costs nothing that could be measured where heads cost the same.
inline constexpr int kSpareBlocks = 4;

struct AttendShape {
  int blocks = 1;  // thread blocks, see AttendBlocks
  int queries_per_kv_head = 1;
  int head_size = 128;
  int spare_blocks = 0;  // more blocks, used where heads of unequal cost then end together
};

// What the kernels read. Pieces of warp w of block b start at pieces[b * warps + w].
struct AttendPlan {
  int warps = 0;  // of a block
  int blocks = 0;
  int slots = 0;
  std::vector<AttendPiece> pieces;
  std::vector<const std::byte*> records;  // [blocks]
  std::vector<AttendTaskInfo> tasks;
};

// Thread blocks for a device: they must all run at a time, one on a multiprocessor.
int AttendBlocks(int multiprocessors);

// Spreads `sequences` over the warps: a block serves one kv head, blocks are given to heads by
// cost, and a warp has a contiguous share of its head's pages. There are at least as many blocks as
// heads, however few `shape.blocks` are.
AttendPlan PlanAttend(const AttendShape& shape, absl::Span<const AttendHead> heads,
                      absl::Span<const AttendSequence> sequences);

}  // namespace fq
