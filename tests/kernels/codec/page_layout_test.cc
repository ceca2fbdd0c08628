#include "kernels/codec/page_layout.h"

#include <set>

#include "gtest/gtest.h"

namespace fq {
namespace {

TEST(PageLayout, EveryPosition_OncePerSide) {
  for (Side side : {Side::kKey, Side::kValue}) {
    std::set<int> seen;
    for (int i = 0; i < kGroupValues; ++i) {
      const GroupPosition at = PositionOf(side, i);
      EXPECT_TRUE(at.token >= 0 && at.token < 64 && at.channel >= 0 && at.channel < 8);
      seen.insert(at.token * 8 + at.channel);
    }
    EXPECT_EQ(seen.size(), 512u);
  }
}

// Lane 4 g + t with g = 5, t = 2, tile 3, r = 1, e = 1, read off the table of FORMAT.md section 2.
TEST(PageLayout, OneLane_AsTheTableSays) {
  const int sequence = 16 * (4 * 5 + 2) + 4 * 3 + 2 * 1 + 1;
  EXPECT_EQ(PositionOf(Side::kKey, sequence).token, 16 * 3 + 5 + 8);
  EXPECT_EQ(PositionOf(Side::kKey, sequence).channel, 2 * 2 + 1);
  EXPECT_EQ(PositionOf(Side::kValue, sequence).token, 16 * 3 + 8 + 2 * 2 + 1);
  EXPECT_EQ(PositionOf(Side::kValue, sequence).channel, 5);
}

TEST(PageLayout, Sizes_AsFormatSays) {
  for (int d : {64, 96, 128, 256}) {
    EXPECT_EQ(SinkRecordBytes(d), 32u * d + 128);
    EXPECT_EQ(UniversalPageBytes(d), 64u * d + 256);
    EXPECT_EQ(ExactPageBytes(d, 2), 256u * d);
    EXPECT_EQ(SinkScaleOffset(Side::kKey, 0, d), 32u * d);
    EXPECT_EQ(SinkScaleOffset(Side::kValue, 15, d) + 4, SinkRecordBytes(d));
    EXPECT_EQ(UniversalNormOffset(Side::kKey, 0, d), 64u * d);
  }
  EXPECT_FALSE(IsHeadSize(80));
  EXPECT_FALSE(IsClass(3));
}

}  // namespace
}  // namespace fq
