#include "kernels/slab_layout.h"

#include <cstring>

#include "gtest/gtest.h"
#include "kernels/page_bytes.h"
#include "tests/testing/codec_set_builder.h"

namespace fq {
namespace {

constexpr int kD = 64;
constexpr SlabShape kShape{1, 3, 1, 2, kD, DType::kF16};

std::shared_ptr<const CodecSet> Set() { return *CodecSet::Parse(BuildCodecSet(3, 2, kD, 4)); }

TEST(SlabLayout, Offsets_EveryKind_SumsOfThePages) {
  const auto set = Set();
  const SlabLayout layout = *SlabLayout::Create(kShape, set);
  for (int kind = 0; kind < 4; ++kind) {
    for (bool sink : {false, true}) {
      const auto& offsets = layout.Offsets(static_cast<PageKind>(kind), sink);
      ASSERT_EQ(offsets.size(), 3u);
      EXPECT_EQ(offsets[0], 192u);  // 128 of the header, 2 checksums, padding
      for (int page = 0; page < 2; ++page) {
        EXPECT_EQ(offsets[page + 1] - offsets[page],
                  PageBytes({static_cast<PageKind>(kind), DType::kF16, kD, sink},
                            &set->profile(kShape.LayerOf(page), kShape.HeadOf(page))));
      }
    }
  }
}

TEST(SlabLayout, MakeHeader_Base_EveryField) {
  const auto set = Set();
  const SlabLayout layout = *SlabLayout::Create(kShape, set);
  BlockId id;
  id.key.fill(7);
  id.index = 9;
  id.tokens = 33;
  const SlabHeader header = layout.MakeHeader(PageKind::kBase, id);
  EXPECT_EQ(header.magic, kSlabMagic);
  EXPECT_EQ(header.kind, 1);
  EXPECT_EQ(header.flags, 0);
  EXPECT_EQ(header.layer_begin, 1);
  EXPECT_EQ(header.layer_end, 3);
  EXPECT_EQ(header.head_begin, 1);
  EXPECT_EQ(header.head_end, 2);
  EXPECT_EQ(header.tokens, 33);
  EXPECT_EQ(header.page_count, 2u);
  EXPECT_EQ(header.block_index, 9u);
  EXPECT_EQ(header.payload_bytes, layout.Offsets(PageKind::kBase, false).back() - 192);
  EXPECT_EQ(std::memcmp(header.block_key, id.key.data(), 32), 0);
  EXPECT_EQ(std::memcmp(header.codec_set_id, set->id().data(), 32), 0);
  EXPECT_EQ(header.checksum, HeaderChecksum(header));
}

TEST(SlabLayout, CheckKind_NoCodecSet_OnlyPlainKinds) {
  const SlabLayout layout = *SlabLayout::Create(kShape, nullptr);
  EXPECT_TRUE(layout.CheckKind(PageKind::kExact).ok());
  EXPECT_TRUE(layout.CheckKind(PageKind::kUniversal).ok());
  EXPECT_EQ(layout.CheckKind(PageKind::kBase).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(layout.CheckKind(static_cast<PageKind>(4)).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace fq
