// Plain structs that describe pages in a caller's memory and the operations on them.
// Used by every backend; no behaviour, no ownership. Bytes of pages: kernels/FORMAT.md.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/host_device.h"

namespace fq {

inline constexpr int kBlockTokens = 64;  // tokens of a block, rows of a page
inline constexpr int kSinkTokens = 16;   // rows of the sink record
inline constexpr int kMaxChunks = 8;     // pieces a block may be scattered over

inline constexpr int kMaxQueryHeads = 16;  // per kv head, in attention

// Element type of keys and values. Values are written to slabs and to the wire: do not change.
enum class DType : uint8_t { kF16 = 0, kBF16 = 1, kF32 = 2 };

FQ_HD constexpr int ElementBytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

// What a page holds. Values are written to slabs and to the wire: do not change.
enum class PageKind : uint8_t { kExact = 0, kBase = 1, kRefinement = 2, kUniversal = 3 };

// The K rows (or the V rows) of one page in memory, scattered over up to kMaxChunks pieces (an
// engine's own blocks). Row `token` (0..63) lies in chunk (first_token + token) / tokens_per_chunk.
// Element (token, channel) of a chunk is at chunk + ElementBytes * (token_in_chunk * token_stride +
// channel * channel_stride).
template <typename Byte>
struct Rows {
  Byte* chunks[kMaxChunks] = {};  // [ceil((first_token + tokens) / tokens_per_chunk)]
  int32_t tokens_per_chunk = kBlockTokens;
  int32_t first_token = 0;     // of the page within the first chunk
  int64_t token_stride = 0;    // elements
  int64_t channel_stride = 1;  // elements
};
using SourceRows = Rows<const std::byte>;
using TargetRows = Rows<std::byte>;

// One page of a caller: K and V rows of one (layer, kv head).
struct SourcePage {
  SourceRows k;
  SourceRows v;
};
struct TargetPage {
  TargetRows k;
  TargetRows v;
};

}  // namespace fq
