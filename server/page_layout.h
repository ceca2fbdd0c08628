// How pages lie in a caller's memory: the wire's PageLayout and BlockPlace as plain values, their
// extents, and the pointers that a codec wants. Pure functions, any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/params.h"
#include "kernels/slab.h"

namespace fq {

// All in bytes but the first (kv_cache.proto, PageLayout).
struct PageLayout {
  uint32_t tokens_per_chunk = 0;
  uint64_t layer_stride = 0, head_stride = 0;
  uint64_t k_offset = 0, k_token_stride = 0, k_channel_stride = 0;
  uint64_t v_offset = 0, v_token_stride = 0, v_channel_stride = 0;
};

// Where one block lies.
struct BlockPlace {
  absl::InlinedVector<uint64_t, kMaxChunks> chunk_offsets;
  uint32_t first_token = 0;
};

// Pages of blocks in one piece of memory; one place per block.
struct PagesAt {
  PageLayout layout;
  std::vector<BlockPlace> places;
};

// Bytes from a chunk's offset to the end of its last element, for all pages of `shape`.
// InvalidArgument when they exceed 64 bits.
absl::StatusOr<uint64_t> ChunkBytes(const PageLayout& layout, const SlabShape& shape);

// Chunks of a block that begins at `first_token`.
constexpr uint32_t ChunksOfBlock(uint32_t tokens_per_chunk, uint32_t first_token) {
  return (first_token + kBlockTokens + tokens_per_chunk - 1) / tokens_per_chunk;
}

// Bytes of a block's pages in element type and head size of `shape`, without gaps.
uint64_t DenseBlockBytes(const SlabShape& shape);

// [layer][head][K|V][64][head_size], one chunk per block.
PageLayout DenseLayout(const SlabShape& shape);

// The pages of one block, [shape.pages()], layer-major. The place has been checked against
// `memory`.
std::vector<SourcePage> SourcePages(const PageLayout& layout, const BlockPlace& place,
                                    const SlabShape& shape, absl::Span<const std::byte> memory);
std::vector<TargetPage> TargetPages(const PageLayout& layout, const BlockPlace& place,
                                    const SlabShape& shape, absl::Span<std::byte> memory);

}  // namespace fq
