#include "server/quality_watch.h"

#include <gtest/gtest.h>

#include <cstring>

#include "kernels/codec/float_convert.h"
#include "tests/server/page_path_fixture.h"
#include "tests/testing/codec_set_builder.h"

namespace fq {
namespace {

class QualityWatchTest : public PagePathTest {
 protected:
  // Stores block `index` of the chain, its rows changed by `factor`; all are sampled.
  void StoreScaled(Profile profile, uint32_t index, float factor) {
    StoreCall call = Batch(profile, 0, 1);
    call.keys[0][1] = static_cast<uint8_t>(++stored_);
    call.keys[0][2] = static_cast<uint8_t>(stored_ >> 8);
    call.first_block_index = index;
    memory_ = TestPages(*set_, 1, 7777u * static_cast<uint64_t>(stored_));
    for (size_t i = 0; i < memory_.size(); i += 2) {
      uint16_t bits;
      std::memcpy(&bits, &memory_[i], 2);
      bits = FloatToBFloat16(BFloat16ToFloat(bits) * factor);
      std::memcpy(&memory_[i], &bits, 2);
    }
    call.source.memory = Bytes(memory_);
    EXPECT_EQ(path_.StoreBlocks({}, *space_, call).value(), std::vector<BlockOutcome>{kOk});
  }

  ProfileQuality Standing(Profile profile) const { return space_->quality->Of(profile); }

  static size_t CountOf(const std::string& text, const std::string& word) {
    size_t count = 0;
    for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) {
      ++count;
    }
    return count;
  }

  int stored_ = 0;
};

TEST_F(QualityWatchTest, TrafficAsCalibrated_RatioNearOne) {
  for (Profile profile : {Profile::kCompact, Profile::kNearLossless}) {
    for (int i = 0; i < 40; ++i) StoreScaled(profile, 1, 1);
    EXPECT_EQ(Standing(profile).samples, 40u);
    EXPECT_NEAR(Standing(profile).error_ratio, 1, 0.1) << ProfileName(profile);
    EXPECT_FALSE(Standing(profile).drift);
  }
  auto values = metrics_.Values();
  EXPECT_EQ(values["fq_quality_samples_total{profile=\"compact\"}"], 40);
  EXPECT_EQ(values["fq_quality_samples_total{profile=\"near-lossless\"}"], 40);
  EXPECT_EQ(registry_.WorstQuality(Profile::kCompact).samples, 40u);
}

TEST_F(QualityWatchTest, ScaledTraffic_DriftsThenRecoversAndSaysBoth) {
  for (int i = 0; i < 50; ++i) StoreScaled(Profile::kCompact, 1, 1);
  for (int i = 0; i < QualityWindow::kWindow; ++i) StoreScaled(Profile::kCompact, 1, 4);
  EXPECT_TRUE(Standing(Profile::kCompact).drift) << Standing(Profile::kCompact).error_ratio;
  EXPECT_FALSE(Standing(Profile::kNearLossless).drift);
  EXPECT_TRUE(registry_.WorstQuality(Profile::kCompact).drift);
  EXPECT_EQ(CountOf(log_text_.str(), "quality_drift "), 1u) << log_text_.str();
  for (int i = 0; i < QualityWindow::kRecovery; ++i) StoreScaled(Profile::kCompact, 1, 1);
  EXPECT_FALSE(Standing(Profile::kCompact).drift) << Standing(Profile::kCompact).error_ratio;
  EXPECT_EQ(CountOf(log_text_.str(), "quality_as_calibrated "), 1u);
}

TEST_F(QualityWatchTest, Samples_OneInSoManyByTheKey) {
  const QualityWatch one_in_four({4, 1.5}, &metrics_, nullptr, SteadyNow);
  const QualityWatch none({0, 1.5}, &metrics_, nullptr, SteadyNow);
  for (uint8_t i = 0; i < 12; ++i) {
    EXPECT_EQ(one_in_four.Samples(Key(i)), i % 4 == 0);
    EXPECT_FALSE(none.Samples(Key(i)));
  }
}

TEST_F(QualityWatchTest, OnlyCalibratedProfilesWithAnExpectation_AreMeasured) {
  StoreScaled(Profile::kExact, 1, 1);
  StoreScaled(Profile::kUniversal, 1, 1);
  const auto plain = *CodecSet::Parse(BuildCodecSet(kTestLayers, kTestHeads, kTestHeadSize, 1));
  NamespaceRegistry registry({4, 4}, {plain, set_}, ScalarBackend());
  Descriptor d;
  d.model = "m";
  d.layers = kTestLayers;
  d.kv_heads = kTestHeads;
  d.head_size = kTestHeadSize;
  d.codec_set_id = std::string(plain->id().begin(), plain->id().end());
  space_ = *registry.Open("t", "older", d, {0, kTestLayers, 0, kTestHeads});
  StoreScaled(Profile::kCompact, 1, 1);
  EXPECT_EQ(Standing(Profile::kCompact).samples, 0u);
  EXPECT_EQ(Standing(Profile::kCompact).error_ratio, 0);
  EXPECT_EQ(metrics_.Values()["fq_quality_samples_total{profile=\"compact\"}"], 0);
  EXPECT_EQ(registry.CodecSets(true), 1u);
  EXPECT_EQ(registry.CodecSets(false), 1u);
}

// A compact block at the end of a chain keeps its refinement, and still is measured as compact.
TEST_F(QualityWatchTest, TailOfACompactChain_MeasuredWithoutItsRefinement) {
  StoreScaled(Profile::kCompact, 1, 1);
  EXPECT_NEAR(Standing(Profile::kCompact).error_ratio, 1, 0.3);
}

TEST_F(QualityWatchTest, BeyondTheCalibratedLength_CountedOnStoreAndLoad) {
  const uint32_t calibrated = static_cast<uint32_t>(set_->calibrated_tokens()) / kBlockTokens;
  const auto count = [&](const char* labels) {
    return metrics_.Values()[std::string("fq_blocks_beyond_calibration_total") + labels];
  };
  for (uint32_t index : {0u, calibrated - 1, calibrated, 2 * calibrated - 1, 2 * calibrated}) {
    for (Profile profile : {Profile::kCompact, Profile::kNearLossless, Profile::kExact}) {
      StoreScaled(profile, index, 1);
    }
  }
  EXPECT_EQ(count("{length=\"calibrated\",operation=\"store\"}"), 4);
  EXPECT_EQ(count("{length=\"twice\",operation=\"store\"}"), 2);
  EXPECT_EQ(count("{length=\"twice\",operation=\"load\"}"), 0);
  watch_.CountLength(*space_, Profile::kCompact, 1u << 31, QualityWatch::Direction::kLoad);
  EXPECT_EQ(count("{length=\"twice\",operation=\"load\"}"), 1);
  EXPECT_EQ(CountOf(log_text_.str(), "beyond_calibrated_length "), 1u);
  EXPECT_EQ(CountOf(log_text_.str(), "beyond_twice_calibrated_length "), 1u);
}

TEST_F(QualityWatchTest, WarningsComeAgainAfterAWhile) {
  for (int i = 0; i < 3; ++i) {
    watch_.CountLength(*space_, Profile::kCompact, 1000, QualityWatch::Direction::kLoad);
    watch_.CountLength(*space_, Profile::kCompact, 1000, QualityWatch::Direction::kLoad);
    clock_.Advance(NamespaceQuality::kWarnEvery);
  }
  EXPECT_EQ(CountOf(log_text_.str(), "beyond_twice_calibrated_length "), 3u);
  EXPECT_NE(log_text_.str().find("calibrated_tokens=\"2048\""), std::string::npos);
}

}  // namespace
}  // namespace fq
