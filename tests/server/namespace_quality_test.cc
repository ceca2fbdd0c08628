#include "server/namespace_quality.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace fq {
namespace {

TEST(NamespaceQuality, Profiles_AreKeptApart) {
  NamespaceQuality quality;
  for (int i = 0; i < QualityWindow::kFewest; ++i) {
    const auto compact = quality.Add(Profile::kCompact, 3, 1.5);
    EXPECT_EQ(compact.changed, i + 1 == QualityWindow::kFewest);
    EXPECT_FALSE(quality.Add(Profile::kNearLossless, 1, 1.5).changed);
  }
  EXPECT_TRUE(quality.Of(Profile::kCompact).drift);
  EXPECT_NEAR(quality.Of(Profile::kCompact).error_ratio, 3, 1e-12);
  EXPECT_EQ(quality.Of(Profile::kNearLossless).samples, uint64_t{QualityWindow::kFewest});
  EXPECT_FALSE(quality.Of(Profile::kNearLossless).drift);
}

TEST(NamespaceQuality, Warnings_OncePerKindAndPeriod) {
  NamespaceQuality quality;
  const MonotonicTime start{};
  EXPECT_TRUE(quality.MayWarn(QualityWarning::kBeyondTwice, start));
  EXPECT_FALSE(quality.MayWarn(QualityWarning::kBeyondTwice, start));
  EXPECT_TRUE(quality.MayWarn(QualityWarning::kBeyondCalibrated, start));
  const auto later = start + NamespaceQuality::kWarnEvery;
  EXPECT_FALSE(quality.MayWarn(QualityWarning::kBeyondTwice, later - Milliseconds(1)));
  EXPECT_TRUE(quality.MayWarn(QualityWarning::kBeyondTwice, later));
  EXPECT_FALSE(quality.MayWarn(QualityWarning::kBeyondTwice, later + Milliseconds(1)));
}

TEST(NamespaceQuality, ManyThreads_NoSampleIsLost) {
  NamespaceQuality quality;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < 1000; ++n) quality.Add(Profile::kCompact, 1, 1.5);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(quality.Of(Profile::kCompact).samples, 4000u);
}

}  // namespace
}  // namespace fq
