#include "client/cli/latency.h"

#include <gtest/gtest.h>

namespace fq::cli {
namespace {

TEST(Latency, Nothing_IsZero) {
  const Latency latency;
  EXPECT_EQ(latency.PercentileMs(0.5), 0);
  EXPECT_EQ(latency.total_ms(), 0);
}

TEST(Latency, Percentiles_AreDurationsThatWereAdded) {
  Latency latency;
  for (int ms = 100; ms >= 1; --ms) latency.Add(absl::Milliseconds(ms));
  EXPECT_EQ(latency.PercentileMs(0), 1);
  EXPECT_EQ(latency.PercentileMs(0.5), 50);
  EXPECT_EQ(latency.PercentileMs(0.99), 99);
  EXPECT_EQ(latency.PercentileMs(1), 100);
  EXPECT_EQ(latency.total_ms(), 5050);
}

}  // namespace
}  // namespace fq::cli
