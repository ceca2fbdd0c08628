#include "server/page_layout.h"

#include <algorithm>

#include "absl/status/status.h"

namespace fq {
namespace {

// Sum of products that remembers whether it went past 64 bits.
class Extent {
 public:
  Extent& Add(uint64_t count, uint64_t stride) {
    uint64_t product = 0;
    overflow_ |= __builtin_mul_overflow(count, stride, &product);
    overflow_ |= __builtin_add_overflow(bytes_, product, &bytes_);
    return *this;
  }
  bool overflow() const { return overflow_; }
  uint64_t bytes() const { return bytes_; }

 private:
  uint64_t bytes_ = 0;
  bool overflow_ = false;
};

Extent EndOfRows(const PageLayout& layout, const SlabShape& shape, uint64_t offset,
                 uint64_t token_stride, uint64_t channel_stride) {
  return Extent()
      .Add(static_cast<uint64_t>(shape.layers() - 1), layout.layer_stride)
      .Add(static_cast<uint64_t>(shape.heads() - 1), layout.head_stride)
      .Add(1, offset)
      .Add(layout.tokens_per_chunk - 1, token_stride)
      .Add(shape.head_size - 1u, channel_stride)
      .Add(1, static_cast<uint64_t>(ElementBytes(shape.dtype)));
}

template <typename Byte>
Rows<Byte> RowsAt(const PageLayout& layout, const BlockPlace& place, int element_bytes, Byte* base,
                  uint64_t token_stride, uint64_t channel_stride) {
  Rows<Byte> rows;
  for (size_t i = 0; i < place.chunk_offsets.size(); ++i) {
    rows.chunks[i] = base + place.chunk_offsets[i];
  }
  rows.tokens_per_chunk = static_cast<int32_t>(layout.tokens_per_chunk);
  rows.first_token = static_cast<int32_t>(place.first_token);
  rows.token_stride = static_cast<int64_t>(token_stride) / element_bytes;
  rows.channel_stride = static_cast<int64_t>(channel_stride) / element_bytes;
  return rows;
}

template <typename Page, typename Byte>
std::vector<Page> PagesOf(const PageLayout& layout, const BlockPlace& place, const SlabShape& shape,
                          absl::Span<Byte> memory) {
  const int bytes = ElementBytes(shape.dtype);
  std::vector<Page> pages;
  pages.reserve(static_cast<size_t>(shape.pages()));
  for (int layer = 0; layer < shape.layers(); ++layer) {
    for (int head = 0; head < shape.heads(); ++head) {
      Byte* page = memory.data() + static_cast<uint64_t>(layer) * layout.layer_stride +
                   static_cast<uint64_t>(head) * layout.head_stride;
      pages.push_back({RowsAt<Byte>(layout, place, bytes, page + layout.k_offset,
                                    layout.k_token_stride, layout.k_channel_stride),
                       RowsAt<Byte>(layout, place, bytes, page + layout.v_offset,
                                    layout.v_token_stride, layout.v_channel_stride)});
    }
  }
  return pages;
}

}  // namespace

absl::StatusOr<uint64_t> ChunkBytes(const PageLayout& layout, const SlabShape& shape) {
  Extent k =
      EndOfRows(layout, shape, layout.k_offset, layout.k_token_stride, layout.k_channel_stride);
  Extent v =
      EndOfRows(layout, shape, layout.v_offset, layout.v_token_stride, layout.v_channel_stride);
  if (k.overflow() || v.overflow()) {
    return absl::InvalidArgumentError(
        "pages.layout: the extent of a chunk exceeds 18446744073709551615 bytes");
  }
  return std::max(k.bytes(), v.bytes());
}

uint64_t DenseBlockBytes(const SlabShape& shape) {
  return uint64_t{2} * static_cast<uint64_t>(shape.pages()) * kBlockTokens * shape.head_size *
         static_cast<uint64_t>(ElementBytes(shape.dtype));
}

PageLayout DenseLayout(const SlabShape& shape) {
  const uint64_t element = static_cast<uint64_t>(ElementBytes(shape.dtype));
  PageLayout layout;
  layout.tokens_per_chunk = kBlockTokens;
  layout.k_channel_stride = layout.v_channel_stride = element;
  layout.k_token_stride = layout.v_token_stride = element * shape.head_size;
  layout.v_offset = layout.k_token_stride * kBlockTokens;
  layout.head_stride = 2 * layout.v_offset;
  layout.layer_stride = layout.head_stride * static_cast<uint64_t>(shape.heads());
  return layout;
}

std::vector<SourcePage> SourcePages(const PageLayout& layout, const BlockPlace& place,
                                    const SlabShape& shape, absl::Span<const std::byte> memory) {
  return PagesOf<SourcePage>(layout, place, shape, memory);
}

std::vector<TargetPage> TargetPages(const PageLayout& layout, const BlockPlace& place,
                                    const SlabShape& shape, absl::Span<std::byte> memory) {
  return PagesOf<TargetPage>(layout, place, shape, memory);
}

}  // namespace fq
