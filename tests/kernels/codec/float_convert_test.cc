#include "kernels/codec/float_convert.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace fq {
namespace {

// The value of an FP16 by its definition.
double HalfByDefinition(uint16_t half) {
  const int exponent = half >> 10 & 31, mantissa = half & 1023;
  const double sign = half >> 15 ? -1 : 1;
  if (exponent == 31) return mantissa ? std::nan("") : sign * INFINITY;
  return exponent == 0 ? sign * std::ldexp(mantissa, -24)
                       : sign * std::ldexp(1024 + mantissa, exponent - 25);
}

TEST(HalfToFloat, EveryHalf_ByDefinitionAndBack) {
  for (int bits = 0; bits < 65536; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const double expected = HalfByDefinition(half);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(HalfToFloat(half)));
      EXPECT_EQ(FloatToHalf(HalfToFloat(half)), (half & 0x8000) | 0x7E00);
    } else {
      ASSERT_EQ(HalfToFloat(half), expected) << bits;
      ASSERT_EQ(FloatToHalf(HalfToFloat(half)), half) << bits;
    }
  }
}

TEST(FloatToHalf, BetweenTwoHalves_NearestAndTiesToEven) {
  for (int bits = 0; bits < 0x7BFF; ++bits) {
    const uint16_t low = static_cast<uint16_t>(bits), high = static_cast<uint16_t>(bits + 1);
    const float middle = 0.5f * (HalfToFloat(low) + HalfToFloat(high));
    const uint16_t even = low % 2 == 0 ? low : high;
    ASSERT_EQ(FloatToHalf(middle), even) << bits;
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, 0.0f)), low) << bits;
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, 1e9f)), high) << bits;
    ASSERT_EQ(FloatToHalf(-middle), even | 0x8000) << bits;
  }
}

TEST(FloatToHalf, LargeValues_RoundToInfinity) {
  EXPECT_EQ(FloatToHalf(65504.0f), 0x7BFF);
  EXPECT_EQ(FloatToHalf(65519.99f), 0x7BFF);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7C00);
  EXPECT_EQ(FloatToHalf(-INFINITY), 0xFC00);
  EXPECT_EQ(FloatToHalf(0x1p-26f), 0);
}

TEST(FloatToBFloat16, RandomFloats_NearestAndTiesToEven) {
  Random random(2);
  for (int i = 0; i < 100000; ++i) {
    const float value = FloatFromBits(static_cast<uint32_t>(random.Next()));
    if (!std::isfinite(value) || std::fabs(value) > 3.38e38f) continue;
    const float rounded = BFloat16ToFloat(FloatToBFloat16(value));
    const double ulp = std::ldexp(1.0, std::max(std::ilogb(value == 0 ? 1 : value), -126) - 7);
    ASSERT_LE(std::fabs(static_cast<double>(rounded) - value), ulp / 2);
  }
  EXPECT_EQ(FloatToBFloat16(FloatFromBits(0x3F808000)), 0x3F80);
  EXPECT_EQ(FloatToBFloat16(FloatFromBits(0x3F818000)), 0x3F82);
  EXPECT_EQ(FloatToBFloat16(std::numeric_limits<float>::quiet_NaN()), 0x7FC0);
  EXPECT_EQ(FloatToBFloat16(std::numeric_limits<float>::max()), 0x7F80);
}

}  // namespace
}  // namespace fq
