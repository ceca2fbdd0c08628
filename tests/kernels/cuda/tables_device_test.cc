#include "kernels/cuda/tables_device.h"

#include <cstring>

#include "gtest/gtest.h"
#include "kernels/codec/float_convert.h"
#include "kernels/codec/quantise.h"
#include "tests/testing/codec_set_builder.h"

namespace fq {
namespace {

class TablesDeviceTest : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    auto set = CodecSet::Parse(BuildCodecSet(2, 3, GetParam(), 7));
    ASSERT_TRUE(set.ok()) << set.status();
    set_ = *set;
    packed_ = PackTables(*set_);
  }

  TablesLayout layout() const { return {GetParam()}; }

  template <typename T>
  T At(int layer, int head, int offset) const {
    T value;
    std::memcpy(&value, packed_.data() + (layer * 3 + head) * layout().Bytes() + offset, sizeof(T));
    return value;
  }

  std::shared_ptr<const CodecSet> set_;
  std::vector<std::byte> packed_;
};

TEST_P(TablesDeviceTest, Lookups_BothSidesAndParts_InterleavedRows) {
  const HeadCodec &k = set_->k(1, 2), &v = set_->v(1, 2);
  const int base = layout().Lookups(0), refinement = layout().Lookups(1);
  for (int entry : {0, 1, 100, 255}) {
    EXPECT_EQ(At<uint32_t>(1, 2, base + 4 * (kClass4Words + 2 * entry)), k.base.class4[entry]);
    EXPECT_EQ(At<uint32_t>(1, 2, base + 4 * (kClass2Words + 2 * entry + 1)), v.base.class2[entry]);
    EXPECT_EQ(At<uint32_t>(1, 2, refinement + 4 * (kClass1Words + 4 * entry + 1)),
              k.refinement.class1[2 * entry + 1]);
    EXPECT_EQ(At<uint32_t>(1, 2, refinement + 4 * (kClass1Words + 4 * entry + 2)),
              v.refinement.class1[2 * entry]);
  }
}

TEST_P(TablesDeviceTest, Fragments_EveryElement_IsTheMatrix) {
  const int d = GetParam(), tiles = d / 16;
  const HeadCodec &k = set_->k(0, 1), &v = set_->v(0, 1);
  for (int row = 0; row < d; row += 5) {
    for (int column = 0; column < d; column += 3) {
      const int in_row = row % 16, in_column = column % 16;
      const int lane = in_row % 8 * 4 + in_column % 8 / 2;
      const int r = in_row / 8 + 2 * (in_column / 8), e = in_column % 2;
      const int i = ((row / 16 * tiles + column / 16) * 32 + lane) * 8 + 2 * r + e;
      EXPECT_EQ(At<uint16_t>(0, 1, layout().QueryFragments() + 2 * i),
                FloatToHalf(k.a_inv[column * d + row]));
      EXPECT_EQ(At<uint16_t>(0, 1, layout().OutputFragments() + 2 * i),
                FloatToHalf(v.a_inv[row * d + column]));
      if (row >= 16) continue;
      const float element = k.a_inv[column * d + row];
      EXPECT_EQ(At<uint16_t>(0, 1, layout().QueryRemainder() + 2 * i),
                FloatToHalf(element - HalfToFloat(FloatToHalf(element))));
    }
  }
}

TEST_P(TablesDeviceTest, Units_Class8AndRefinement_StepAndDeviation) {
  const CodecProfile &profile = set_->profile(0, 0);
  ASSERT_EQ(profile.k[0], 8);
  EXPECT_EQ(At<float>(0, 0, layout().Unit(0, 0)), kClass8Step);
  EXPECT_EQ(At<float>(0, 0, layout().IsClass8(0)), 1.0f);
  const int last = 4 * (GetParam() - 1);
  EXPECT_EQ(At<float>(0, 0, layout().Unit(0, 0) + last), 1.0f);
  EXPECT_EQ(At<float>(0, 0, layout().IsClass8(0) + last), 0.0f);
  EXPECT_EQ(At<float>(0, 0, layout().Unit(1, 1) + last), set_->v(0, 0).sd[GetParam() - 1]);
}

INSTANTIATE_TEST_SUITE_P(HeadSizes, TablesDeviceTest, testing::Values(64, 96, 128, 256));

}  // namespace
}  // namespace fq
