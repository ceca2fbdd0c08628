#include "client/cpp/breaker.h"

#include <gtest/gtest.h>

namespace fq::client {
namespace {

const absl::Time kStart = absl::FromUnixSeconds(1000);

TEST(Breaker, FailuresInARow_OpenIt) {
  Breaker breaker({3, absl::Seconds(2)});
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(breaker.Allow(kStart)) << i;
    breaker.Failed(kStart);
  }
  EXPECT_FALSE(breaker.Allow(kStart));
  EXPECT_FALSE(breaker.Allow(kStart + absl::Milliseconds(1999)));
}

TEST(Breaker, SuccessBetween_StartsTheCountAgain) {
  Breaker breaker({2, absl::Seconds(2)});
  breaker.Failed(kStart);
  breaker.Succeeded();
  breaker.Failed(kStart);
  EXPECT_TRUE(breaker.Allow(kStart));
}

TEST(Breaker, AfterItsTime_LetsOneTry) {
  Breaker breaker({1, absl::Seconds(2)});
  breaker.Failed(kStart);
  EXPECT_TRUE(breaker.Allow(kStart + absl::Seconds(2)));
  EXPECT_FALSE(breaker.Allow(kStart + absl::Seconds(2)));  // while that one is out
}

TEST(Breaker, TryFails_OpensAgain) {
  Breaker breaker({2, absl::Seconds(2)});
  breaker.Failed(kStart);
  breaker.Failed(kStart);
  EXPECT_TRUE(breaker.Allow(kStart + absl::Seconds(3)));
  breaker.Failed(kStart + absl::Seconds(4));
  EXPECT_FALSE(breaker.Allow(kStart + absl::Seconds(5)));
  EXPECT_TRUE(breaker.Allow(kStart + absl::Seconds(6)));
}

TEST(Breaker, TrySucceeds_Closes) {
  Breaker breaker({1, absl::Seconds(2)});
  breaker.Failed(kStart);
  EXPECT_TRUE(breaker.Allow(kStart + absl::Seconds(2)));
  breaker.Succeeded();
  EXPECT_TRUE(breaker.Allow(kStart + absl::Seconds(2)));
  EXPECT_TRUE(breaker.Allow(kStart + absl::Seconds(2)));
}

}  // namespace
}  // namespace fq::client
