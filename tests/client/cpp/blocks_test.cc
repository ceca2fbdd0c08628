#include "client/cpp/blocks.h"

#include <gtest/gtest.h>

namespace fq::client {
namespace {

Descriptor SmallModel() {
  Descriptor d;
  d.layers = 4;
  d.kv_heads = 3;
  d.head_size = 64;
  d.dtype = DType::kBf16;
  return d;
}

TEST(Blocks, Names_RoundTrip) {
  for (Profile p :
       {Profile::kExact, Profile::kNearLossless, Profile::kCompact, Profile::kUniversal}) {
    EXPECT_EQ(*ProfileOf(Name(p)), p);
  }
  for (DType d : {DType::kF16, DType::kBf16, DType::kF32}) EXPECT_EQ(*DTypeOf(Name(d)), d);
  EXPECT_EQ(Name(BlockStatus::kBelowFloor), "below-floor");
  EXPECT_EQ(Name(BlockStatus::kRefused), "refused");
  EXPECT_EQ(Name(static_cast<BlockStatus>(77)), "unspecified");
}

TEST(Blocks, UnknownName_ListsTheNames) {
  EXPECT_EQ(DTypeOf("int8").status().message(), "'int8' is none of f16, bf16, f32");
}

TEST(Blocks, DenseLayout_HasNoGaps) {
  const SlabRange range{1, 3, 0, 2};
  const PageLayout layout = DenseLayout(SmallModel(), range);
  EXPECT_EQ(layout.k_channel_stride, 2u);
  EXPECT_EQ(layout.k_token_stride, 128u);
  EXPECT_EQ(layout.v_offset, 64u * 128);
  EXPECT_EQ(layout.head_stride, 2u * 64 * 128);
  EXPECT_EQ(layout.layer_stride, 2 * layout.head_stride);
  EXPECT_EQ(DenseBlockBytes(SmallModel(), range), 2u * 2 * 2 * 64 * 64 * 2);
}

TEST(Blocks, WholeModel_IsAllLayersAndHeads) {
  const SlabRange range = WholeModel(SmallModel());
  EXPECT_EQ(range.layer_end - range.layer_begin, 4u);
  EXPECT_EQ(range.head_end - range.head_begin, 3u);
}

TEST(Blocks, DensePlaces_FollowEachOther) {
  const auto places = DensePlaces(100, 1000, 3);
  ASSERT_EQ(places.size(), 3u);
  EXPECT_EQ(places[2].chunk_offsets, std::vector<uint64_t>{2100});
}

}  // namespace
}  // namespace fq::client
