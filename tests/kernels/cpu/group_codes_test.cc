#include "kernels/cpu/group_codes.h"

#include <vector>

#include "gtest/gtest.h"
#include "kernels/codec/quantise.h"
#include "tests/testing/codec_set_builder.h"
#include "tests/testing/random.h"

namespace fq {
namespace {

class GroupCodesTest : public testing::Test {
 protected:
  void SetUp() override {
    set_ = CodecSet::Parse(BuildCodecSet(1, 1, 64, 2)).value();
    plan_ = {Side::kKey, &classes_, &set_->k(0, 0).base};
  }

  std::shared_ptr<const CodecSet> set_;
  std::vector<uint8_t> classes_ = {0, 8, 0, 4, 2, 1, 0, 0};
  GroupPlan plan_;
};

TEST_F(GroupCodesTest, CodedGroups_OneBitPerGroupWithBits) {
  EXPECT_EQ(CodedGroups(classes_), 0b00111010u);
}

// Values that are entries of the codebook come back as they are, so decoding inverts encoding.
TEST_F(GroupCodesTest, DecodedValues_EncodeToTheSameValues) {
  Random random(5);
  std::vector<std::byte> codes(64 * 15), again(codes.size());
  for (std::byte& byte : codes) byte = static_cast<std::byte>(1 + random.Below(255));
  alignas(64) float v[64 * kPageTokens], w[64 * kPageTokens];
  for (const Primitives* primitives : {&ScalarPrimitives(), &SimdPrimitives()}) {
    DecodeGroups(*primitives, plan_, codes.data(), v);
    EncodeGroups(*primitives, plan_, v, again.data());
    DecodeGroups(*primitives, plan_, again.data(), w);
    for (int i = 0; i < 64 * kPageTokens; ++i) ASSERT_EQ(v[i], w[i]) << i;
  }
}

TEST_F(GroupCodesTest, ClassZero_ZerosAndNoBytes) {
  std::vector<std::byte> codes(64 * 15, std::byte{77});
  alignas(64) float v[64 * kPageTokens];
  DecodeGroups(ScalarPrimitives(), plan_, codes.data(), v);
  for (int i = 0; i < kGroupValues; ++i) EXPECT_EQ(v[i], 0.0f);
  for (int i = 0; i < kGroupValues; ++i) EXPECT_EQ(v[kGroupValues + i], Class8Value(77));
}

}  // namespace
}  // namespace fq
