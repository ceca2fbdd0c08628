#include "server/quality_window.h"

#include <gtest/gtest.h>

#include <limits>

namespace fq {
namespace {

constexpr double kLimit = 1.5;

// Samples of this ratio until the drift state changes; -1 when it does not within `most`.
int SamplesUntilChange(QualityWindow& window, double ratio, int most) {
  for (int i = 1; i <= most; ++i) {
    if (window.Add(ratio, kLimit)) return i;
  }
  return -1;
}

TEST(QualityWindow, AsPredicted_RatioOneAndNoDrift) {
  QualityWindow window;
  EXPECT_EQ(window.ratio(), 0);
  EXPECT_EQ(SamplesUntilChange(window, 1.0, 10'000), -1);
  EXPECT_NEAR(window.ratio(), 1, 1e-9);
  EXPECT_EQ(window.samples(), 10'000u);
  EXPECT_FALSE(window.drift());
}

TEST(QualityWindow, BadFromTheStart_DriftsAtTheFewestSamples) {
  QualityWindow window;
  EXPECT_EQ(SamplesUntilChange(window, 2.0, 100), QualityWindow::kFewest);
  EXPECT_TRUE(window.drift());
}

TEST(QualityWindow, TwiceTheErrorAfterLongGoodTraffic_DriftsWithinTheWindow) {
  QualityWindow window;
  SamplesUntilChange(window, 1.0, 100'000);
  const int noticed = SamplesUntilChange(window, 2.0, QualityWindow::kWindow);
  EXPECT_GT(noticed, 1);
  EXPECT_TRUE(window.drift());
}

TEST(QualityWindow, WorstTrafficThenGood_RecoversInTheStatedSamples) {
  QualityWindow window;
  for (int i = 0; i < 10'000; ++i) window.Add(std::numeric_limits<double>::infinity(), kLimit);
  EXPECT_NEAR(window.ratio(), QualityWindow::kMostRatio, 1e-9);
  EXPECT_EQ(SamplesUntilChange(window, 1.0, QualityWindow::kRecovery), QualityWindow::kRecovery);
  EXPECT_FALSE(window.drift());
}

TEST(QualityWindow, BetweenTheTwoLimits_StateStaysAsItWas) {
  QualityWindow window;
  EXPECT_EQ(SamplesUntilChange(window, 1.4, 1000), -1);
  EXPECT_FALSE(window.drift());
  SamplesUntilChange(window, 3.0, 1000);
  EXPECT_TRUE(window.drift());
  EXPECT_EQ(SamplesUntilChange(window, 1.3, 1000), -1);
  EXPECT_TRUE(window.drift());
  EXPECT_GT(SamplesUntilChange(window, 1.2, 1000), 0);
  EXPECT_FALSE(window.drift());
}

TEST(QualityWindow, OneOutlierInGoodTraffic_NoDrift) {
  QualityWindow window;
  SamplesUntilChange(window, 1.0, 1000);
  EXPECT_EQ(SamplesUntilChange(window, QualityWindow::kMostRatio, 1), -1);
  EXPECT_LT(window.ratio(), kLimit);
}

TEST(QualityWindow, NotANumber_CountsAsTheWorst) {
  QualityWindow window;
  window.Add(std::numeric_limits<double>::quiet_NaN(), kLimit);
  EXPECT_EQ(window.ratio(), QualityWindow::kMostRatio);
}

}  // namespace
}  // namespace fq
