#include "server/page_layout.h"

#include <gtest/gtest.h>

#include <limits>

namespace fq {
namespace {

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();

SlabShape Shape() {
  SlabShape shape;
  shape.layer_end = 3;
  shape.head_end = 2;
  shape.head_size = 64;
  shape.dtype = DType::kBF16;
  return shape;
}

TEST(PageLayout, Dense_FillsABlockExactly) {
  EXPECT_EQ(DenseBlockBytes(Shape()), 2u * 3 * 2 * 64 * 64 * 2);
  EXPECT_EQ(*ChunkBytes(DenseLayout(Shape()), Shape()), DenseBlockBytes(Shape()));
}

TEST(PageLayout, ChunkBytes_ReachTheLastElement) {
  PageLayout layout = DenseLayout(Shape());
  layout.tokens_per_chunk = 16;
  layout.v_offset = 0;
  layout.k_offset = 1000;
  EXPECT_EQ(*ChunkBytes(layout, Shape()),
            2 * layout.layer_stride + layout.head_stride + 1000 + 15 * 128 + 63 * 2 + 2);
}

TEST(PageLayout, AnyFieldThatOverflows_IsRefused) {
  uint64_t PageLayout::*const fields[] = {
      &PageLayout::layer_stride,   &PageLayout::head_stride,      &PageLayout::k_offset,
      &PageLayout::k_token_stride, &PageLayout::k_channel_stride, &PageLayout::v_offset,
      &PageLayout::v_token_stride, &PageLayout::v_channel_stride};
  for (auto field : fields) {
    for (uint64_t value : {kMax, kMax - 1, kMax / 2 + 1, kMax - 4096}) {
      PageLayout layout = DenseLayout(Shape());
      layout.*field = value;
      const auto bytes = ChunkBytes(layout, Shape());
      // A sum that still fits must be at least the value itself.
      if (bytes.ok()) {
        EXPECT_GT(*bytes, value);
      }
    }
  }
}

TEST(PageLayout, ChunksOfBlock_CoverIt) {
  EXPECT_EQ(ChunksOfBlock(8, 0), 8u);
  EXPECT_EQ(ChunksOfBlock(64, 0), 1u);
  EXPECT_EQ(ChunksOfBlock(128, 64), 1u);
  EXPECT_EQ(ChunksOfBlock(256, 192), 1u);
}

TEST(PageLayout, Pages_PointWhereTheLayoutSays) {
  std::vector<std::byte> memory(1 << 20);
  PageLayout layout = DenseLayout(Shape());
  layout.tokens_per_chunk = 32;
  layout.k_offset = 6;
  const BlockPlace place{{4096, 65536}, 0};
  const auto pages = TargetPages(layout, place, Shape(), absl::MakeSpan(memory));
  ASSERT_EQ(pages.size(), 6u);
  const TargetPage& page = pages[2 * 2 + 1];  // layer 2, head 1
  const uint64_t at = 2 * layout.layer_stride + layout.head_stride;
  EXPECT_EQ(page.k.chunks[0], memory.data() + 4096 + at + 6);
  EXPECT_EQ(page.k.chunks[1], memory.data() + 65536 + at + 6);
  EXPECT_EQ(page.v.chunks[0], memory.data() + 4096 + at + layout.v_offset);
  EXPECT_EQ(page.k.tokens_per_chunk, 32);
  EXPECT_EQ(page.k.token_stride, 64);
  EXPECT_EQ(page.v.channel_stride, 1);
  EXPECT_EQ(SourcePages(layout, place, Shape(), memory).size(), 6u);
}

}  // namespace
}  // namespace fq
