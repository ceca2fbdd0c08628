#include "kernels/cpu/sink_rows.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace fq {
namespace {

TEST(SinkRows, RandomRows_WithinHalfAStep) {
  constexpr int kD = 96;
  Random random(3);
  std::vector<float> x(kD * kPageTokens), decoded(x.size(), 9.0f);
  for (float& value : x) value = static_cast<float>(random.Gaussian());
  std::vector<std::byte> record(SinkRecordBytes(kD));
  for (Side side : {Side::kKey, Side::kValue}) {
    EncodeSinkRows(side, kD, x.data(), record.data());
    DecodeSinkRows(side, kD, record.data(), decoded.data());
    for (int c = 0; c < kD; ++c) {
      for (int t = 0; t < kSinkRows; ++t) {
        EXPECT_NEAR(decoded[c * kPageTokens + t], x[c * kPageTokens + t], 0.5 * 6.0 / 127);
      }
      EXPECT_EQ(decoded[c * kPageTokens + kSinkRows], 9.0f) << "rows beyond are left alone";
    }
  }
}

TEST(SinkRows, NaNAndInfinity_ZeroAndLimit) {
  std::vector<float> x(64 * kPageTokens);
  x[0] = std::nanf("");
  x[kPageTokens] = INFINITY;
  std::vector<std::byte> record(SinkRecordBytes(64));
  EncodeSinkRows(Side::kKey, 64, x.data(), record.data());
  DecodeSinkRows(Side::kKey, 64, record.data(), x.data());
  EXPECT_EQ(x[0], 0.0f);
  EXPECT_NEAR(x[kPageTokens], 65504.0f, 0.01f);
}

}  // namespace
}  // namespace fq
