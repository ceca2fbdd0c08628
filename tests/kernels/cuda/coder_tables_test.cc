#include "kernels/cuda/coder_tables.h"

#include <cmath>
#include <cstring>

#include "gtest/gtest.h"
#include "kernels/codec/float_convert.h"
#include "kernels/codec/quantise.h"
#include "tests/testing/codec_set_builder.h"

namespace fq {
namespace {

class CoderTablesTest : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    auto set = CodecSet::Parse(BuildCodecSet(2, 3, GetParam(), 7));
    ASSERT_TRUE(set.ok()) << set.status();
    set_ = *set;
    coders_ = PackCoders(*set_);
  }

  CoderLayout layout() const { return {GetParam()}; }

  // Of layer 1, head 2.
  template <typename T>
  T At(int side, int offset) const {
    T value;
    std::memcpy(&value, coders_.data() + ((1 * 3 + 2) * 2 + side) * layout().Bytes() + offset,
                sizeof(T));
    return value;
  }
  float Terms(int side, int offset, int distance) const {
    return HalfToFloat(At<uint16_t>(side, offset)) +
           HalfToFloat(At<uint16_t>(side, offset + distance));
  }

  std::shared_ptr<const CodecSet> set_;
  std::vector<std::byte> coders_;
};

TEST_P(CoderTablesTest, Starts_EveryGroup_PrefixSumsOfBothSides) {
  const CodecProfile& profile = set_->profile(1, 2);
  int start = 0;
  for (int side : {0, 1}) {
    const auto& classes = side == 0 ? profile.k_refinement : profile.v_refinement;
    for (size_t i = 0; i < classes.size(); ++i) {
      EXPECT_EQ(At<uint8_t>(side, layout().Classes(1) + i), classes[i]);
      EXPECT_EQ(At<uint16_t>(side, layout().Starts(1) + 2 * i), start);
      start += 64 * classes[i];
    }
  }
  EXPECT_EQ(At<uint32_t>(0, layout().PageBytes(1)), start);
  EXPECT_EQ(At<uint32_t>(1, layout().PageBytes(1)), start);
}

// FORMAT.md's u = A (x - mu) out of the scaled terms.
TEST_P(CoderTablesTest, Forward_EveryElement_IsTheMatrixTo20Bits) {
  const int d = GetParam();
  for (int side : {0, 1}) {
    const HeadCodec& codec = side == 0 ? set_->k(1, 2) : set_->v(1, 2);
    for (int i = 0; i < d; i += 3) {
      const float scale = At<float>(side, layout().ComponentScale() + 4 * i);
      double bias = 0;
      for (int c = 0; c < d; ++c) {
        const int lane = i % 8 * 4 + c % 8 / 2, tile = i / 16 * (d / 16) + c / 16;
        const int low = i % 16 / 8, high = c % 16 / 8;
        const int word = side == 0 ? high + 2 * low : low + 2 * high;
        const int at = 1024 * tile + 16 * lane + 4 * word + 2 * (c % 2);
        const float a = Terms(side, layout().Forward() + at, 512) * scale;
        EXPECT_NEAR(a, codec.a[i * d + c], 0x1p-20 * 8192 * scale);
        bias -= static_cast<double>(codec.a[i * d + c]) * codec.mu[c];
      }
      EXPECT_NEAR(At<float>(side, layout().ComponentBias() + 4 * i), bias, 1e-5);
    }
  }
}

TEST_P(CoderTablesTest, Inverse_EveryElement_IsTheMatrixTo20Bits) {
  const int d = GetParam();
  const HeadCodec& codec = set_->k(1, 2);
  for (int c = 0; c < d; c += 3) {
    const float scale = At<float>(0, layout().OutputScale() + 4 * c);
    for (int i = 0; i < d; ++i) {
      const int column = c % 32 / 8 * 2 + c % 2, tile = c % 8 / 2;
      const int lane = 4 * column + i % 8 / 2, r = i % 16 / 8, e = i % 2;
      const int chunk = ((c / 32 * (d / 16) + i / 16) * 4 + tile / 2) * 32 + lane;
      const int at = layout().Inverse() + 16 * chunk + 8 * (tile % 2) + 4 * r + 2 * e;
      const float feed = At<float>(0, layout().Feed() + 4 * i);
      EXPECT_EQ(feed, set_->profile(1, 2).k[i / 8] == 8 ? kClass8InverseStep : 1.0f);
      EXPECT_NEAR(Terms(0, at, 1024) * feed * scale, codec.a_inv[c * d + i],
                  0x1p-20 * scale * feed);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(HeadSizes, CoderTablesTest, testing::Values(64, 96, 128, 256));

}  // namespace
}  // namespace fq
