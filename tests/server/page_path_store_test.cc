#include <gtest/gtest.h>

#include "server/page_path.h"
#include "tests/server/page_path_fixture.h"

namespace fq {
namespace {

using Outcomes = std::vector<BlockOutcome>;
using PagePathStoreTest = PagePathTest;

TEST_F(PagePathStoreTest, Compact_OnlyTheLastTwoBlocksKeepTheRefinement) {
  EXPECT_EQ(StoreBatch(Profile::kCompact, 0, 5), Outcomes(5, kOk));
  EXPECT_EQ(Held(5), "bbbrr");
}

TEST_F(PagePathStoreTest, CompactChainGrows_RefinementsBehindTheTailAreDropped) {
  StoreBatch(Profile::kCompact, 0, 3);
  StoreBatch(Profile::kCompact, 3, 1);
  EXPECT_EQ(Held(4), "bbrr");
  StoreBatch(Profile::kCompact, 4, 2);
  EXPECT_EQ(Held(6), "bbbbrr");
  EXPECT_EQ(metrics_.Values()["fq_tail_refinements_dropped_total"], 3);
}

TEST_F(PagePathStoreTest, StoredAgainWithinALongerBatch_DropsItsOldTail) {
  StoreBatch(Profile::kCompact, 0, 2);
  EXPECT_EQ(Held(2), "rr");
  EXPECT_EQ(StoreBatch(Profile::kCompact, 0, 5), (Outcomes{kExists, kExists, kOk, kOk, kOk}));
  EXPECT_EQ(Held(5), "bbbrr");
}

TEST_F(PagePathStoreTest, NearLosslessBehindACompactTail_KeepsItsRefinement) {
  StoreBatch(Profile::kNearLossless, 0, 3);
  StoreBatch(Profile::kCompact, 3, 3);
  EXPECT_EQ(Held(6), "rrrbrr");
}

TEST_F(PagePathStoreTest, OtherProfiles_StoreTheirKind) {
  StoreBatch(Profile::kExact, 0, 2);
  StoreBatch(Profile::kUniversal, 2, 2);
  StoreBatch(Profile::kNearLossless, 4, 2);
  EXPECT_EQ(Held(6), "eeuurr");
}

TEST_F(PagePathStoreTest, StoredTwice_ExistsAndIsLeftAsItIs) {
  StoreBatch(Profile::kUniversal, 0, 2);
  EXPECT_EQ(StoreBatch(Profile::kExact, 0, 2), Outcomes(2, kExists));
  EXPECT_EQ(Held(2), "uu");
  EXPECT_EQ(metrics_.Values()["fq_blocks_stored_total{profile=\"exact\",result=\"exists\"}"], 2);
}

// "Exists" means "there already, or another writer is at it" (kv_cache.proto), never "no room".
TEST_F(PagePathStoreTest, AnotherWriterIsAtIt_Exists) {
  auto filling = tiers_->Reserve(Tier::kHost, Slab(1), {}, 64, 0);
  ASSERT_TRUE(filling.ok());
  EXPECT_EQ(StoreBatch(Profile::kExact, 0, 3), (Outcomes{kOk, kExists, kOk}));
  EXPECT_EQ(Held(3), "e-e");
}

TEST_F(PagePathStoreTest, BatchLargerThanTheStore_KeepsItsFrontAndSaysFull) {
  tiers_ = MakeTiers(256 << 10);  // three exact blocks
  PagePath path(tiers_.get(), nullptr, &workers_, &metrics_, &watch_);
  const auto outcomes = path.StoreBlocks({}, *space_, Batch(Profile::kExact, 0, 8));
  ASSERT_TRUE(outcomes.ok());
  EXPECT_EQ(std::count(outcomes->begin(), outcomes->end(), kOk), 3);
  EXPECT_EQ(std::count(outcomes->begin(), outcomes->end(), kFull), 5);
  for (uint8_t i = 0; i < 8; ++i) {
    EXPECT_EQ(static_cast<bool>(tiers_->Find(Slab(i))), (*outcomes)[i] == kOk);
  }
  EXPECT_EQ(tiers_->Stats().host.pinned_slabs, 0u);
}

TEST_F(PagePathStoreTest, RoomIsNeeded_ChainsLoseTheirEndFirst) {
  tiers_ = MakeTiers(256 << 10);
  PagePath path(tiers_.get(), nullptr, &workers_, &metrics_, &watch_);
  ASSERT_TRUE(path.StoreBlocks({}, *space_, Batch(Profile::kExact, 0, 3)).ok());
  ASSERT_TRUE(path.StoreBlocks({}, *space_, Batch(Profile::kExact, 9, 1)).ok());
  EXPECT_TRUE(tiers_->Find(Slab(0)));
  EXPECT_FALSE(tiers_->Find(Slab(2)));
}

TEST_F(PagePathStoreTest, NoCodecSet_LossyProfilesAreRefused) {
  Descriptor d;
  d.model = "m";
  d.layers = kTestLayers;
  d.kv_heads = kTestHeads;
  d.head_size = kTestHeadSize;
  space_ = *registry_.Open("t", "plain", d, {0, kTestLayers, 0, kTestHeads});
  for (Profile profile : {Profile::kCompact, Profile::kNearLossless}) {
    const auto outcomes = path_.StoreBlocks({}, *space_, Batch(profile, 0, 1));
    EXPECT_EQ(outcomes.status().code(), absl::StatusCode::kFailedPrecondition) << outcomes.status();
  }
  EXPECT_EQ(tiers_->Stats().host.slabs + tiers_->Stats().host.reserved_slabs, 0u);
}

TEST_F(PagePathStoreTest, DeadlinePassedOrCancelled_StopsAndLeavesNoReservation) {
  CallContext late;
  late.deadline = SteadyNow();
  EXPECT_EQ(path_.StoreBlocks(late, *space_, Batch(Profile::kExact, 0, 4)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  CallContext cancelled;
  int asked = 0;
  cancelled.cancelled = [&] { return ++asked > 2; };
  WorkerPool one(1, 1);
  PagePath path(tiers_.get(), nullptr, &one, &metrics_, &watch_);
  EXPECT_EQ(path.StoreBlocks(cancelled, *space_, Batch(Profile::kExact, 0, 4)).status().code(),
            absl::StatusCode::kCancelled);
  EXPECT_EQ(Held(4), "ee--");
  EXPECT_EQ(tiers_->Stats().host.reserved_slabs, 0u);
}

TEST_F(PagePathStoreTest, Stored_MeasuresARate) {
  EXPECT_EQ(path_.encode_rate().bytes_per_second(), 0);
  StoreBatch(Profile::kExact, 0, 1);
  EXPECT_GT(path_.encode_rate().bytes_per_second(), 0);
}

TEST(ProfileName, AllProfiles_HaveTheirName) {
  EXPECT_STREQ(ProfileName(Profile::kExact), "exact");
  EXPECT_STREQ(ProfileName(Profile::kNearLossless), "near-lossless");
  EXPECT_STREQ(ProfileName(Profile::kCompact), "compact");
  EXPECT_STREQ(ProfileName(Profile::kUniversal), "universal");
}

}  // namespace
}  // namespace fq
