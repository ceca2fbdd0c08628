#include "kernels/codec/quantise.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"
#include "kernels/codec/chain_word.h"
#include "kernels/codec/nearest.h"
#include "kernels/codec/universal.h"

namespace fq {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

TEST(Centred, NaNAndOutliers_MeanAndLimit) {
  EXPECT_EQ(Centred(kNaN, 3.0f), 0.0f);
  EXPECT_EQ(Centred(kInfinity, 4.0f), 65500.0f);
  EXPECT_EQ(Centred(-1e30f, 4.0f), -65508.0f);
  EXPECT_EQ(Centred(1e-40f, 0.0f), 1e-40f);
  EXPECT_EQ(Sanitised(kNaN), 0.0f);
}

TEST(Class8, EveryCode_RoundTrips) {
  for (int code = 1; code < 256; ++code) {
    EXPECT_EQ(Class8Code(Class8Value(static_cast<uint8_t>(code))), code);
  }
}

TEST(Class8, NaNAndOutliers_MiddleAndEnds) {
  EXPECT_EQ(Class8Code(kNaN), 128);
  EXPECT_EQ(Class8Code(kInfinity), 255);
  EXPECT_EQ(Class8Code(-1e30f), 1);
  EXPECT_EQ(Class8Value(255), 4.5f / 127 * 127);
}

TEST(InverseDeviation, ZeroOrDenormal_NoResidual) {
  EXPECT_EQ(InverseDeviation(0.0f), 0.0f);
  EXPECT_EQ(InverseDeviation(1e-40f), 0.0f);
  EXPECT_EQ(InverseDeviation(0.25f), 4.0f);
}

TEST(SinkScale, ZeroAndUnderflowingRows_One) {
  EXPECT_EQ(SinkScale(0.0f), 1.0f);
  EXPECT_EQ(SinkScale(1.4e-45f), 1.0f);
  EXPECT_EQ(SinkScale(127.0f), 1.0f);
  EXPECT_EQ(SinkCode(0.0f, SinkScale(1.4e-45f)), 0);
  EXPECT_EQ(SinkCode(-254.0f, 2.0f), -127);
}

TEST(ChainWord, Bytes_OverlapAsFormatSays) {
  const uint32_t words[2] = {0x3CB83C34, 0xBE3A3931};
  EXPECT_EQ(EntryHalf(words, 2, 0), 0x3C34);
  EXPECT_EQ(EntryHalf(words, 2, 1), 0x3CB8);
  EXPECT_EQ(EntryHalf(words, 2, 2), 0x3400);
  EXPECT_EQ(EntryHalf(words, 2, 3), 0xB83C);
  EXPECT_EQ(EntryHalf(words, 1, 4), 0x3931);
  EXPECT_EQ(EntryHalf(words, 1, 7), 0x3A39);
  EXPECT_EQ(EntryHalf(words, 4, 1), 0x3CB8);
}

TEST(NearestEntry, TiesAndNaN_LowestIndex) {
  static SearchTable table{};
  for (int i = 0; i < kTableEntries; ++i) table.value[0][i] = static_cast<float>(i - i % 2) * 0.5f;
  for (int i = 0; i < kTableEntries; ++i) table.start[i] = NearestStart(table, 2, i);
  const float x[] = {7.2f, 0.0f}, tie[] = {7.5f, 0.0f}, nan[] = {kNaN, 0.0f};
  EXPECT_EQ(NearestEntry(table, 2, x, 1), 14);
  EXPECT_EQ(NearestEntry(table, 2, tie, 1), 14);
  EXPECT_EQ(NearestEntry(table, 2, nan, 1), 0);
}

TEST(NearestLevel, LevelsTiesAndNaN) {
  for (int i = 0; i < kLevels; ++i) EXPECT_EQ(NearestLevel(LloydMaxLevels().level[i]), i);
  EXPECT_EQ(NearestLevel(0.0f), 7);
  EXPECT_EQ(NearestLevel(100.0f), 15);
  EXPECT_EQ(NearestLevel(kNaN), 0);
}

TEST(UniversalNorm, ZeroAndHugeRows_StayInRange) {
  EXPECT_EQ(UniversalNorm(0.0f, 64), 1);
  EXPECT_EQ(UniversalNorm(64.0f, 64), 0x3C00);
  EXPECT_EQ(UniversalNorm(1e30f, 64), 0x7BFF);
  EXPECT_EQ(HadamardBlock(96), 32);
  EXPECT_EQ(HadamardBlock(256), 256);
}

}  // namespace
}  // namespace fq
