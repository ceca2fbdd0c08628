#include <gtest/gtest.h>
#include <xxhash.h>

#include "server/page_path.h"
#include "tests/server/page_path_fixture.h"

namespace fq {
namespace {

constexpr Profile kE = Profile::kExact, kN = Profile::kNearLossless, kC = Profile::kCompact,
                  kU = Profile::kUniversal;

struct TailRow {
  std::vector<Profile> matched;
  uint32_t usable;
};

class TailRule : public testing::TestWithParam<TailRow> {};

TEST_P(TailRule, UsableBlocks_LeaveNoCompactTail) {
  EXPECT_EQ(UsableBlocks(GetParam().matched), GetParam().usable);
}

INSTANTIATE_TEST_SUITE_P(
    Table, TailRule,
    testing::Values(TailRow{{}, 0}, TailRow{{kC}, 0}, TailRow{{kN}, 1}, TailRow{{kE}, 1},
                    TailRow{{kU}, 1}, TailRow{{kC, kC}, 0}, TailRow{{kC, kN}, 0},
                    TailRow{{kN, kC}, 0}, TailRow{{kN, kN}, 2}, TailRow{{kC, kN, kN}, 3},
                    TailRow{{kC, kC, kN}, 1}, TailRow{{kC, kC, kC}, 1}, TailRow{{kN, kN, kC}, 1},
                    TailRow{{kC, kC, kC, kC, kC}, 3}, TailRow{{kC, kC, kC, kN, kN}, 5},
                    TailRow{{kE, kE, kU, kU}, 4}, TailRow{{kE, kE, kE, kC}, 2}));

class PagePathLoadTest : public PagePathTest {
 protected:
  LeasedBlocks Leased(uint8_t count, Profile floor = Profile::kCompact) {
    lease_.pins = Find(count).pins;
    EXPECT_EQ(lease_.pins.size(), count);
    return {&lease_, 0, count, floor};
  }
  InlineBlocks LoadAll(const LeasedBlocks& blocks) {
    auto result = path_.LoadInline({}, *space_, blocks);
    EXPECT_TRUE(result.ok()) << result.status();
    return *std::move(result);
  }
  // Flips a bit of a stored block behind the store's back, as bad memory would.
  void Damage(const Pin& pin) {
    const_cast<std::byte&>(pin.primary()[pin.primary().size() / 2]) ^= std::byte{4};
  }

  Lease lease_;
};

TEST_F(PagePathLoadTest, Lookup_MatchesTheLongestPrefix) {
  StoreBatch(Profile::kCompact, 0, 5);
  LookupResult found = Find(8);
  EXPECT_EQ(found.pins.size(), 5u);
  EXPECT_EQ(found.profiles, (std::vector<Profile>{kC, kC, kC, kN, kN}));
  EXPECT_EQ(found.usable_blocks, 5u);
  uint64_t bytes = 0;
  for (const Pin& pin : found.pins) bytes += pin.primary().size() + pin.refinement().size();
  EXPECT_EQ(found.load_bytes, bytes);
  EXPECT_EQ(found.predicted_load_ms, 0);
  found = Find(4);
  EXPECT_EQ(found.pins.size(), 4u);
  EXPECT_EQ(found.usable_blocks, 2u);
  tiers_->Erase(Slab(2));
  EXPECT_EQ(Find(8).pins.size(), 2u);
  tiers_->Erase(Slab(0));
  EXPECT_EQ(Find(8).pins.size(), 0u);
}

TEST_F(PagePathLoadTest, Lookup_FloorEndsThePrefix) {
  StoreBatch(Profile::kExact, 0, 1);
  StoreBatch(Profile::kNearLossless, 1, 1);
  StoreBatch(Profile::kUniversal, 2, 1);
  EXPECT_EQ(Find(3, kC).pins.size(), 3u);
  EXPECT_EQ(Find(3, kN).pins.size(), 2u);
  EXPECT_EQ(Find(3, kE).pins.size(), 1u);
}

TEST_F(PagePathLoadTest, Lookup_BlockOfAnotherIndexIsAMiss) {
  StoreBatch(Profile::kExact, 1, 1);
  LookupCall call;
  call.keys = {Key(1)};
  EXPECT_EQ(path_.Lookup(*space_, call).pins.size(), 0u);
}

TEST_F(PagePathLoadTest, Exact_ComesBackBitForBit) {
  StoreBatch(Profile::kExact, 0, 3);
  const InlineBlocks loaded = LoadAll(Leased(3));
  EXPECT_EQ(loaded.outcomes, std::vector<BlockOutcome>(3, kOk));
  EXPECT_EQ(loaded.payload, memory_);
  EXPECT_GT(path_.decode_rate().bytes_per_second(), 0);
  EXPECT_GT(Find(3).predicted_load_ms, 0);
}

TEST_F(PagePathLoadTest, LossyProfiles_ComeBackWithinTheirError) {
  StoreBatch(Profile::kNearLossless, 0, 3);
  const double near_lossless = RelativeError(memory_, LoadAll(Leased(3)).payload);
  EXPECT_LT(near_lossless, 0.3);  // random transforms are worse than calibrated ones
  for (uint8_t i = 0; i < 3; ++i) tiers_->Erase(Slab(i));
  StoreBatch(Profile::kUniversal, 0, 3);
  EXPECT_LT(RelativeError(memory_, LoadAll(Leased(3)).payload), 0.2);
  for (uint8_t i = 0; i < 3; ++i) tiers_->Erase(Slab(i));
  StoreBatch(Profile::kCompact, 0, 8);
  const InlineBlocks compact = LoadAll(Leased(6));
  EXPECT_LT(RelativeError(memory_.substr(0, compact.payload.size()), compact.payload), 0.9);
  EXPECT_GT(RelativeError(memory_.substr(0, compact.payload.size()), compact.payload),
            near_lossless);
}

TEST_F(PagePathLoadTest, DamagedBlock_IsAMissDroppedCountedAndItsPlaceUntouched) {
  StoreBatch(Profile::kExact, 0, 3);
  const LeasedBlocks blocks = Leased(3);
  Damage(lease_.pins[1]);
  std::string poisoned(memory_.size(), '\xA5');
  CallerPages target;
  target.pages.layout = DenseLayout(space_->shape());
  for (size_t i = 0; i < 3; ++i) target.pages.places.push_back({{i * kTestBlockBytes}, 0});
  target.memory = Bytes(poisoned);
  const auto outcomes = path_.Load({}, *space_, blocks, target);
  EXPECT_EQ(*outcomes, (std::vector<BlockOutcome>{kOk, kMiss, kOk}));
  EXPECT_EQ(poisoned.substr(kTestBlockBytes, kTestBlockBytes),
            std::string(kTestBlockBytes, '\xA5'));
  EXPECT_EQ(poisoned.substr(0, kTestBlockBytes), memory_.substr(0, kTestBlockBytes));
  EXPECT_EQ(Held(3), "e-e");
  EXPECT_EQ(metrics_.Values()["fq_blocks_missed_total{reason=\"check_failed\"}"], 1);
}

TEST_F(PagePathLoadTest, DamagedBlockInline_IsLeftOut) {
  StoreBatch(Profile::kExact, 0, 3);
  const LeasedBlocks blocks = Leased(3);
  Damage(lease_.pins[0]);
  const InlineBlocks loaded = LoadAll(blocks);
  EXPECT_EQ(loaded.outcomes, (std::vector<BlockOutcome>{kMiss, kOk, kOk}));
  EXPECT_EQ(loaded.sizes, (std::vector<uint64_t>{0, kTestBlockBytes, kTestBlockBytes}));
  EXPECT_EQ(loaded.payload, memory_.substr(kTestBlockBytes));
}

TEST_F(PagePathLoadTest, BelowTheFloor_IsSaidAndNotDelivered) {
  StoreBatch(Profile::kCompact, 0, 3);
  InlineBlocks loaded = LoadAll(Leased(3, kN));
  EXPECT_EQ(loaded.outcomes, (std::vector<BlockOutcome>{kBelowFloor, kOk, kOk}));
  EXPECT_EQ(loaded.payload.size(), 2 * kTestBlockBytes);
  loaded = *path_.LoadEncoded({}, *space_, Leased(3, kE));
  EXPECT_EQ(loaded.outcomes, std::vector<BlockOutcome>(3, kBelowFloor));
  EXPECT_TRUE(loaded.payload.empty());
}

TEST_F(PagePathLoadTest, Encoded_IsTheExtentsWithTheirHashes) {
  StoreBatch(Profile::kCompact, 0, 3);
  const LeasedBlocks blocks = Leased(3);
  Damage(lease_.pins[1]);
  const InlineBlocks loaded = *path_.LoadEncoded({}, *space_, blocks);
  EXPECT_EQ(loaded.outcomes, (std::vector<BlockOutcome>{kOk, kMiss, kOk}));
  const Pin& tail = lease_.pins[2];
  EXPECT_EQ(loaded.sizes,
            (std::vector<uint64_t>{lease_.pins[0].primary().size(), 0, tail.primary().size()}));
  EXPECT_EQ(loaded.refinement_sizes, (std::vector<uint64_t>{0, 0, tail.refinement().size()}));
  ASSERT_EQ(loaded.checksums.size(), 3 * 16u);
  XXH128_canonical_t digest;
  XXH128_canonicalFromHash(&digest,
                           XXH3_128bits(tail.refinement().data(), tail.refinement().size()));
  EXPECT_EQ(loaded.checksums.substr(32),
            std::string(reinterpret_cast<const char*>(digest.digest), 16));
  EXPECT_EQ(loaded.payload.size(),
            lease_.pins[0].primary().size() + tail.primary().size() + tail.refinement().size());
}

TEST_F(PagePathLoadTest, EncodedBytes_CountAllExtents) {
  StoreBatch(Profile::kNearLossless, 0, 2);
  const LeasedBlocks blocks = Leased(2);
  EXPECT_EQ(EncodedBytes(blocks), path_.LoadEncoded({}, *space_, blocks)->payload.size());
}

TEST_F(PagePathLoadTest, Attend_AgreesWithItselfOverKindsAndFailsOnDamage) {
  StoreBatch(Profile::kExact, 0, 3);
  Leased(3);
  std::vector<float> q(kTestHeads * kTestHeadSize, 0.1f), out(q.size()), lse(kTestHeads);
  AttendCall call{&lease_, 3, {}};
  call.params = {1, 1, 0.125f, q.data(), out.data(), lse.data()};
  EXPECT_TRUE(path_.Attend({}, *space_, call).ok());
  for (float value : lse) EXPECT_GT(value, 0);
  Damage(lease_.pins[2]);
  EXPECT_EQ(path_.Attend({}, *space_, call).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Held(3), "ee-");
  CallContext late;
  late.deadline = SteadyNow();
  EXPECT_EQ(path_.Attend(late, *space_, call).code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(PagePathLoadTest, Verify_DropsWhatFails) {
  StoreBatch(Profile::kNearLossless, 0, 2);
  Leased(2);
  EXPECT_TRUE(path_.VerifyBlock(*space_, lease_.pins[0]).ok());
  const_cast<std::byte&>(lease_.pins[1].refinement()[200]) ^= std::byte{1};
  EXPECT_FALSE(path_.VerifyBlock(*space_, lease_.pins[1]).ok());
  EXPECT_EQ(Held(2), "r-");
}

}  // namespace
}  // namespace fq
