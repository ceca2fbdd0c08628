#include "kernels/cpu/universal_rows.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace fq {
namespace {

// Rows of one channel are the worst case for a code without a transform; with it they are like all
// others.
TEST(UniversalRows, SpikesAndGaussians_ErrorOfTheLevels) {
  for (int d : {64, 96, 128, 256}) {
    Random random(d);
    std::vector<float> x(d * kPageTokens);
    for (int t = 0; t < kPageTokens; ++t) {
      for (int c = 0; c < d; ++c) {
        const bool spike = t % 2 == 0 && c % 32 == t / 2;
        x[c * kPageTokens + t] = t % 2 == 1 ? static_cast<float>(random.Gaussian()) : spike ? 5 : 0;
      }
    }
    std::vector<float> coded = x, decoded(x.size());
    std::vector<std::byte> page(UniversalPageBytes(d));
    EncodeUniversalRows(Side::kValue, d, coded.data(), page.data());
    DecodeUniversalLevels(Side::kValue, d, page.data(), decoded.data());
    InverseUniversalRows(Side::kValue, d, page.data(), decoded.data());
    double error = 0, power = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      error += std::pow(decoded[i] - x[i], 2);
      power += std::pow(x[i], 2);
    }
    EXPECT_LT(error / power, 0.02) << d;
  }
}

TEST(UniversalRows, ZeroRow_SmallestNorm) {
  std::vector<float> x(64 * kPageTokens), decoded(x.size());
  std::vector<std::byte> page(UniversalPageBytes(64));
  EncodeUniversalRows(Side::kKey, 64, x.data(), page.data());
  EXPECT_EQ(page[UniversalNormOffset(Side::kKey, 5, 64)], std::byte{1});
  DecodeUniversalLevels(Side::kKey, 64, page.data(), decoded.data());
  InverseUniversalRows(Side::kKey, 64, page.data(), decoded.data());
  for (float value : decoded) EXPECT_NEAR(value, 0.0f, 1e-6f);
}

}  // namespace
}  // namespace fq
