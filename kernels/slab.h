// Slabs: the unit that the node stores, moves and checks. SlabCodec turns the pages of one block in
// a caller's memory into slab extents (FORMAT.md section 4) and back. The one entry point for
// server/ and client/.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/codec_set.h"
#include "kernels/page_error.h"
#include "kernels/params.h"

namespace fq {

using BlockKey = std::array<uint8_t, 32>;

// Which pages a slab holds. Ends are exclusive.
struct SlabShape {
  uint16_t layer_begin = 0;
  uint16_t layer_end = 0;
  uint16_t head_begin = 0;
  uint16_t head_end = 0;
  uint16_t head_size = 0;  // 64, 96, 128 or 256
  DType dtype = DType::kBF16;

  int layers() const { return layer_end - layer_begin; }
  int heads() const { return head_end - head_begin; }
  int pages() const { return layers() * heads(); }
  // Of the page with that index in a slab.
  int LayerOf(int page) const { return layer_begin + page / heads(); }
  int HeadOf(int page) const { return head_begin + page % heads(); }
};

// Which block a slab belongs to; echoed in the header and checked on every read.
struct BlockId {
  BlockKey key{};
  uint32_t index = 0;              // of the block in its chain; 0 is the sink block
  uint16_t tokens = kBlockTokens;  // 1..64
};

// What is delivered. Values are on the wire (proto Profile): do not change.
enum class Profile : uint8_t { kExact = 1, kNearLossless = 2, kCompact = 3, kUniversal = 4 };

class Backend;
struct AttendParams;
struct EncodedBlock;

// Encodes, decodes and checks the slabs of one shape. Immutable; all methods may be called from any
// thread.
class SlabCodec {
 public:
  // `codec_set` may be null: then only exact and universal work. InvalidArgument when the shape
  // does not fit it (names the field and both values).
  static absl::StatusOr<std::unique_ptr<const SlabCodec>> Create(
      const SlabShape& shape, std::shared_ptr<const CodecSet> codec_set, const Backend* backend);
  virtual ~SlabCodec() = default;

  virtual const SlabShape& shape() const = 0;

  // Bytes of an extent, header and checksums included. FailedPrecondition when `kind` needs a codec
  // set.
  virtual absl::StatusOr<size_t> ExtentBytes(PageKind kind, bool sink) const = 0;

  // Where a page lies in an extent of that kind. FailedPrecondition as above; InvalidArgument: no
  // such page.
  struct BytesInExtent {
    size_t offset = 0, bytes = 0;
  };
  virtual absl::StatusOr<BytesInExtent> PageInExtent(PageKind kind, bool sink, int page) const = 0;

  // Encodes the pages ([shape.pages()], layer-major) into `primary` (kind kExact, kBase or
  // kUniversal) and, when not empty, `refinement` (only with kBase). Both spans have exactly
  // ExtentBytes. Sources are only read during the call.
  virtual absl::Status Encode(PageKind kind, const BlockId& id, absl::Span<const SourcePage> pages,
                              absl::Span<std::byte> primary,
                              absl::Span<std::byte> refinement) const = 0;

  // Checks header, key echo, lengths, codec set and every page checksum. DataLoss says what
  // differs.
  virtual absl::Status Verify(const BlockId& id, absl::Span<const std::byte> extent) const = 0;

  // Verify for the one or two extents of a block, and that they belong together: the kind of the
  // primary one. An empty `refinement` is none.
  virtual absl::StatusOr<PageKind> VerifyBlock(const BlockId& id,
                                               absl::Span<const std::byte> primary,
                                               absl::Span<const std::byte> refinement) const = 0;

  // Verify, then decode into the caller's pages ([shape.pages()]). `refinement` may be empty
  // (compact). Nothing is written to a page before every extent has been verified.
  virtual absl::Status Decode(const BlockId& id, absl::Span<const std::byte> primary,
                              absl::Span<const std::byte> refinement,
                              absl::Span<const TargetPage> pages) const = 0;

  // The weighted error of one page of a block that was just encoded with kind kBase, from the rows
  // it was made of; an empty `refinement` means base alone. InvalidArgument: the page, its rows or
  // the lengths do not fit.
  virtual absl::StatusOr<PageError> MeasureError(const BlockId& id, int page,
                                                 const SourcePage& source,
                                                 absl::Span<const std::byte> primary,
                                                 absl::Span<const std::byte> refinement) const = 0;

  // See the free function Attend below.
  virtual absl::Status Attend(absl::Span<const EncodedBlock> blocks,
                              const AttendParams& params) const = 0;
};

// One layer's attention over encoded blocks, for all kv heads of the shape.
struct AttendParams {
  int layer = 0;                // absolute, inside the shape
  int q_heads_per_kv_head = 1;  // 1..16
  float scale = 1.0f;           // multiplies q . k
  const float* q = nullptr;     // [heads * q_heads_per_kv_head][head_size]
  float* out = nullptr;         // [heads * q_heads_per_kv_head][head_size]
  float* lse = nullptr;         // [heads * q_heads_per_kv_head], natural log; -inf for no blocks
};
struct EncodedBlock {
  BlockId id;
  absl::Span<const std::byte> primary;
  absl::Span<const std::byte> refinement;  // may be empty
};

// Softmax attention of q over all tokens of `blocks`, computed on the codes (keys are not rotated:
// they hold RoPE). Verifies every extent first. DataLoss, InvalidArgument.
absl::Status Attend(const SlabCodec& codec, absl::Span<const EncodedBlock> blocks,
                    const AttendParams& params);

}  // namespace fq
