#include "server/leases.h"

#include <gtest/gtest.h>

#include "server/retry_after.h"
#include "tests/testing/running_node.h"

namespace fq {
namespace {

class LeaseTableTest : public testing::Test {
 protected:
  LeaseTableTest() : store_(*Store::Create({1 << 20, 1})) {}

  std::vector<Pin> PinOf(uint8_t name) {
    SlabKey key;
    key.block[0] = name;
    auto reservation = store_->Reserve(key, {}, 64, 0);
    if (reservation.ok()) std::move(*reservation).Publish();
    std::vector<Pin> pins;
    pins.push_back(store_->Find(key));
    return pins;
  }
  uint64_t Pinned() const { return store_->Stats().pinned_slabs; }

  std::unique_ptr<Store> store_;
  FakeClock clock_;
  LeaseTable table_{[this] { return clock_.Now(); }, Milliseconds(100), 2};
};

TEST_F(LeaseTableTest, UnusedForItsLife_ExpiresAndUnpins) {
  const RandomId id = *table_.Add(PinOf(1));
  EXPECT_EQ(Pinned(), 1u);
  clock_.Advance(Milliseconds(99));
  EXPECT_EQ(table_.Expire(), 0u);
  clock_.Advance(Milliseconds(1));
  EXPECT_EQ(table_.Use(id).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(table_.Expire(), 1u);
  EXPECT_EQ(Pinned(), 0u);
  EXPECT_EQ(table_.size(), 0u);
}

TEST_F(LeaseTableTest, EachUse_BeginsItsLifeAnew) {
  const RandomId id = *table_.Add(PinOf(1));
  for (int i = 0; i < 5; ++i) {
    clock_.Advance(Milliseconds(99));
    EXPECT_TRUE(table_.Use(id).ok());
  }
}

TEST_F(LeaseTableTest, ExpiredDuringACall_KeepsThePinUntilTheCallEnds) {
  const RandomId id = *table_.Add(PinOf(1));
  auto lease = table_.Use(id);
  clock_.Advance(Milliseconds(1000));
  EXPECT_EQ(table_.Expire(), 1u);
  EXPECT_EQ(Pinned(), 1u);
  lease->reset();
  EXPECT_EQ(Pinned(), 0u);
}

TEST_F(LeaseTableTest, AtTheLimit_OneMoreIsRefusedUntilOneExpires) {
  ASSERT_TRUE(table_.Add(PinOf(1)).ok());
  clock_.Advance(Milliseconds(50));
  ASSERT_TRUE(table_.Add(PinOf(2)).ok());
  const auto refused = table_.Add(PinOf(3));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(refused.status().message().find("2, at most 2"), absl::string_view::npos);
  EXPECT_EQ(RetryAfterMs(refused.status()), 100u);
  EXPECT_EQ(Pinned(), 2u);
  clock_.Advance(Milliseconds(50));
  EXPECT_TRUE(table_.Add(PinOf(3)).ok());
}

TEST_F(LeaseTableTest, Released_UnpinsOnceAndIsUnknownAfterwards) {
  const RandomId id = *table_.Add(PinOf(1));
  EXPECT_TRUE(table_.Release(id));
  EXPECT_FALSE(table_.Release(id));
  EXPECT_FALSE(table_.Release(RandomId{}));
  EXPECT_EQ(table_.Use(id).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Pinned(), 0u);
}

TEST_F(LeaseTableTest, Closed_UnpinsAllAndTakesNoMore) {
  ASSERT_TRUE(table_.Add(PinOf(1)).ok());
  EXPECT_EQ(table_.Snapshot().size(), 1u);
  table_.Close();
  EXPECT_EQ(Pinned(), 0u);
  EXPECT_EQ(table_.Add(PinOf(2)).status().code(), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(Pinned(), 0u);
}

}  // namespace
}  // namespace fq
