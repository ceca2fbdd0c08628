// Who wants room on a full device: waits for demotion to make some, or evicts.
#include <gtest/gtest.h>

#include <chrono>
#include <vector>

#include "tests/server/tiers_fixture.h"

namespace fq {
namespace {

class TiersRoom : public TiersDemotion {};

// Copies take longer than stores: whoever stores waits, and nothing is lost.
TEST_F(TiersRoom, StoresFasterThanCopies_WaitInsteadOfEvicting) {
  Create(128 * kBytes);
  while_copied_ = [this] { AwaitSomebodyWaiting(); };
  for (uint32_t n = 0; n < 100; ++n) ASSERT_TRUE(PutOrWait(n).ok());
  EXPECT_GT(tiers_->Stats().waits, 0u);
  EXPECT_EQ(tiers_->Stats().device.evicted_slabs, 0u);
  for (uint32_t n = 0; n < 100; ++n) {
    const Pin pin = tiers_->Find(Key(n));
    ASSERT_TRUE(pin) << n;
    EXPECT_EQ(Check(*queue_, pin, n), "") << n;
  }
}

TEST_F(TiersRoom, LoadsOfHostSlabs_WaitToo) {
  Create(128 * kBytes);
  tiers_->Reserve(Tier::kHost, Key(500), {500, 0, 0, 64}, kBytes, 0).value().Publish();
  const Pin below = tiers_->Find(Key(500));
  while_copied_ = [this] { AwaitSomebodyWaiting(); };
  for (uint32_t n = 0; n < 20; ++n) ASSERT_TRUE(Put(n).ok());
  const auto room = tiers_->ReserveCopy(below, SteadyNow() + std::chrono::hours(1));
  EXPECT_TRUE(room.ok()) << room.status();
  EXPECT_EQ(tiers_->Stats().waits, 1u);
  EXPECT_EQ(tiers_->Stats().device.evicted_slabs, 0u);
}

// Below the watermark, but the slab that comes is larger than what is left.
TEST_F(TiersRoom, ALargeSlab_WaitsForRoomToo) {
  Create(128 * kBytes);
  for (uint32_t n = 0; n < 15; ++n) ASSERT_TRUE(Put(n).ok());
  const auto room = tiers_->Reserve(Tier::kDevice, Key(50), {50, 0, 0, 64}, 12 * kBytes, 0,
                                    SteadyNow() + std::chrono::hours(1));
  ASSERT_TRUE(room.ok()) << room.status();
  EXPECT_EQ(tiers_->Stats().device.evicted_slabs, 0u);
  EXPECT_GE(tiers_->Stats().demoted_slabs, 7u);
}

TEST_F(TiersRoom, WaitedLongEnough_TheDeviceEvicts) {
  Create(128 * kBytes);
  HoldCopies();
  for (uint32_t n = 0; n < 20; ++n) ASSERT_TRUE(Put(n).ok());
  EXPECT_TRUE(Put(*queue_, 20, 1, 0, SteadyNow() + Milliseconds(20)).ok());
  EXPECT_EQ(tiers_->Stats().waits, 1u);
  EXPECT_EQ(tiers_->Stats().device.evicted_slabs, 1u);
}

TEST_F(TiersRoom, TooManyWait_TheDeviceEvictsAtOnce) {
  TiersOptions options;
  options.most_waiting = 0;
  Create(128 * kBytes, kDeviceBytes, std::move(options));
  HoldCopies();
  for (uint32_t n = 0; n < 20; ++n) ASSERT_TRUE(Put(n).ok());
  EXPECT_TRUE(PutOrWait(20).ok());
  EXPECT_EQ(tiers_->Stats().waits, 0u);
  EXPECT_EQ(tiers_->Stats().device.evicted_slabs, 1u);
}

// Waiting for what cannot come would cost every store its limit.
TEST_F(TiersRoom, HostFull_NobodyWaits) {
  Create(2 * kBytes);
  const auto all = tiers_->Reserve(Tier::kHost, Key(100), SlabTag{}, 2 * kBytes, 0);
  for (uint32_t n = 0; n < 30; ++n) ASSERT_TRUE(PutOrWait(n).ok());
  EXPECT_EQ(tiers_->Stats().demoted_slabs, 0u);
  EXPECT_EQ(tiers_->Stats().device.evicted_slabs, 10u);
}

TEST_F(TiersRoom, DeviceFullOfPins_NobodyWaits) {
  Create(128 * kBytes);
  std::vector<Pin> pins;
  for (uint32_t n = 0; n < 20; ++n) {
    auto room = tiers_->Reserve(Tier::kDevice, Key(n), SlabTag{}, kBytes, 0);
    ASSERT_TRUE(room.ok());
    pins.push_back(std::move(*room).Publish());
  }
  EXPECT_TRUE(absl::IsResourceExhausted(PutOrWait(20)));
}

TEST_F(TiersRoom, DeviceLostWhileSomebodyWaits_TheWaitEnds) {
  Create(128 * kBytes);
  for (uint32_t n = 0; n < 17; ++n) ASSERT_TRUE(Put(n).ok());
  while_copied_ = [this] {
    AwaitSomebodyWaiting();
    device_.Lose();
    tiers_->DropDevice();
  };
  std::vector<absl::StatusOr<Reservation>> rooms;
  for (uint32_t n = 17; n < 21; ++n) {
    rooms.push_back(tiers_->Reserve(Tier::kDevice, Key(n), SlabTag{}, kBytes, 0,
                                    SteadyNow() + std::chrono::hours(1)));
  }
  EXPECT_EQ(tiers_->Stats().waits, 1u);
  EXPECT_GE(tiers_->Stats().failed_demotions, 1u);
}

}  // namespace
}  // namespace fq
