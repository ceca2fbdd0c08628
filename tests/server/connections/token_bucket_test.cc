#include "server/connections/token_bucket.h"

#include <gtest/gtest.h>

namespace fq {
namespace {

TEST(TokenBucket, Burst_ThenPace) {
  MonotonicTime now{std::chrono::hours(1)};
  TokenBucket bucket(3, 10);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(bucket.Take(now));
  EXPECT_FALSE(bucket.Take(now));
  EXPECT_FALSE(bucket.Take(now + Milliseconds(99)));
  EXPECT_TRUE(bucket.Take(now + Milliseconds(101)));
  EXPECT_FALSE(bucket.Take(now + Milliseconds(101)));
}

TEST(TokenBucket, LongPause_GivesTheBurstAndNoMore) {
  MonotonicTime now{std::chrono::hours(1)};
  TokenBucket bucket(3, 10);
  EXPECT_TRUE(bucket.Take(now));
  now += std::chrono::hours(5);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(bucket.Take(now));
  EXPECT_FALSE(bucket.Take(now));
}

}  // namespace
}  // namespace fq
