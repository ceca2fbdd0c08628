#include "server/namespaces.h"

#include <gtest/gtest.h>

#include "kernels/backend.h"
#include "tests/testing/codec_set_builder.h"

namespace fq {
namespace {

constexpr Range kWhole{0, 2, 0, 2};

class NamespaceRegistryTest : public testing::Test {
 protected:
  NamespaceRegistryTest()
      : set_(*CodecSet::Parse(BuildCodecSet(2, 2, 64, 1))),
        registry_(NamespaceLimits{2, 2}, {set_}, ScalarBackend()) {
    plain_.model = "m";
    plain_.layers = plain_.kv_heads = 2;
    plain_.head_size = 64;
    coded_ = plain_;
    coded_.codec_set_id = std::string(set_->id().begin(), set_->id().end());
  }

  void ExpectRefused(const absl::StatusOr<std::shared_ptr<const SlabSpace>>& result,
                     absl::StatusCode code, const std::string& part) {
    EXPECT_EQ(result.status().code(), code) << result.status();
    EXPECT_NE(result.status().message().find(part), absl::string_view::npos) << result.status();
  }

  std::shared_ptr<const CodecSet> set_;
  NamespaceRegistry registry_;
  Descriptor plain_, coded_;
};

TEST_F(NamespaceRegistryTest, SameRange_SameSpace_OtherRangesAndTenantsOthers) {
  const auto a = *registry_.Open("t", "n", plain_, kWhole);
  EXPECT_EQ(*registry_.Open("t", "n", plain_, kWhole), a);
  EXPECT_NE((*registry_.Open("t", "n", plain_, {0, 1, 0, 2}))->scope, a->scope);
  EXPECT_NE((*registry_.Open("u", "n", plain_, kWhole))->scope, a->scope);
  EXPECT_EQ(a->fingerprint, FingerprintOf(plain_));
  EXPECT_EQ(a->codec_set, nullptr);
}

TEST_F(NamespaceRegistryTest, OtherDescriptor_IsRefusedButOtherTenantsMayHaveIt) {
  ASSERT_TRUE(registry_.Open("t", "n", plain_, kWhole).ok());
  ExpectRefused(registry_.Open("t", "n", coded_, kWhole), absl::StatusCode::kFailedPrecondition,
                "codec_set_id");
  EXPECT_TRUE(registry_.Open("u", "n", coded_, kWhole).ok());
}

TEST_F(NamespaceRegistryTest, Quality_IsOfTheNamespaceAndTheWorstOfAll) {
  const auto whole = *registry_.Open("t", "n", coded_, kWhole);
  const auto part = *registry_.Open("t", "n", coded_, {0, 1, 0, 2});
  const auto other = *registry_.Open("u", "n", coded_, kWhole);
  EXPECT_EQ(whole->quality, part->quality);
  EXPECT_NE(whole->quality, other->quality);
  for (int i = 0; i < 10; ++i) {
    whole->quality->Add(Profile::kCompact, 1, 1.5);
    other->quality->Add(Profile::kCompact, 3, 1.5);
  }
  const ProfileQuality worst = registry_.WorstQuality(Profile::kCompact);
  EXPECT_EQ(worst.samples, 20u);
  EXPECT_NEAR(worst.error_ratio, 3, 1e-12);
  EXPECT_TRUE(worst.drift);
  EXPECT_EQ(registry_.WorstQuality(Profile::kNearLossless).samples, 0u);
  EXPECT_EQ((*registry_.List("t", "n"))[0].quality, whole->quality);
}

TEST_F(NamespaceRegistryTest, CodecSet_MustBeLoadedAndFit) {
  EXPECT_EQ((*registry_.Open("t", "n", coded_, kWhole))->codec_set, set_);
  Descriptor unknown = coded_;
  unknown.codec_set_id = std::string(32, '\7');
  ExpectRefused(registry_.Open("t", "x", unknown, kWhole), absl::StatusCode::kFailedPrecondition,
                "0707");
  Descriptor larger = coded_;
  larger.layers = 3;
  ExpectRefused(registry_.Open("t", "x", larger, kWhole), absl::StatusCode::kFailedPrecondition,
                "layers = 3: the codec set was made for 2");
  EXPECT_EQ(registry_.size(), 1u);
}

TEST_F(NamespaceRegistryTest, TooManyRanges_AreRefused) {
  ASSERT_TRUE(registry_.Open("t", "n", plain_, {0, 1, 0, 1}).ok());
  ASSERT_TRUE(registry_.Open("t", "n", plain_, {0, 1, 1, 2}).ok());
  ExpectRefused(registry_.Open("t", "n", plain_, kWhole), absl::StatusCode::kResourceExhausted,
                "max-ranges-per-namespace: n has 2 ranges, at most 2");
}

TEST_F(NamespaceRegistryTest, TooManyNamespaces_ForgetTheOldestUnusedOne) {
  const auto held = *registry_.Open("t", "held", plain_, kWhole);
  const uint64_t scope = (*registry_.Open("t", "unused", plain_, kWhole))->scope;
  const auto next = registry_.Open("t", "next", plain_, kWhole);
  ASSERT_TRUE(next.ok());
  EXPECT_GT((*next)->scope, scope);
  ExpectRefused(registry_.Open("t", "more", plain_, kWhole), absl::StatusCode::kResourceExhausted,
                "max-namespaces: 2 are in use, at most 2");
  EXPECT_EQ(*registry_.Open("t", "held", plain_, kWhole), held);
}

TEST_F(NamespaceRegistryTest, List_ShowsOwnNamespacesOnly) {
  ASSERT_TRUE(registry_.Open("t", "n", plain_, kWhole).ok());
  ASSERT_TRUE(registry_.Open("u", "o", plain_, kWhole).ok());
  EXPECT_EQ(registry_.List("t", "")->size(), 1u);
  EXPECT_EQ(registry_.List("t", "n")->at(0).spaces.size(), 1u);
  EXPECT_TRUE(registry_.List("v", "")->empty());
  EXPECT_EQ(registry_.List("t", "o").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace fq
