#include "client/cpp/proto_mapping.h"

#include <gtest/gtest.h>

namespace fq::client {
namespace {

TEST(ProtoMapping, Enums_HaveTheNumbersOfTheWire) {
  EXPECT_EQ(static_cast<int>(Profile::kUniversal), wire::PROFILE_UNIVERSAL);
  EXPECT_EQ(static_cast<int>(Profile::kCompact), wire::PROFILE_COMPACT);
  EXPECT_EQ(static_cast<int>(BlockStatus::kBelowFloor), wire::BLOCK_STATUS_BELOW_FLOOR);
  EXPECT_EQ(static_cast<int>(BlockStatus::kRefused), wire::BLOCK_STATUS_REFUSED);
  EXPECT_EQ(static_cast<int>(BlockStatus::kExists), wire::BLOCK_STATUS_EXISTS);
  EXPECT_EQ(static_cast<int>(DType::kF32), wire::DTYPE_F32);
  EXPECT_EQ(static_cast<int>(DType::kBf16), wire::DTYPE_BF16);
}

TEST(ProtoMapping, Descriptor_RoundTrips) {
  SessionSpec spec;
  spec.namespace_name = "n";
  spec.descriptor = {"m", "w", 2, 3, 64, DType::kF16, "r", std::string(32, 'c'), {{"a", "b"}}};
  spec.range = {0, 2, 1, 3};
  const wire::SessionRequest request = ToWire(spec, "me");
  EXPECT_EQ(request.client_name(), "me");
  EXPECT_EQ(request.range().head_begin(), 1u);
  const Descriptor back = FromWire(request.namespace_descriptor());
  EXPECT_EQ(FingerprintOf(back), FingerprintOf(spec.descriptor));
}

TEST(ProtoMapping, SessionResponse_WrongIdIsDataLoss) {
  wire::SessionResponse response;
  response.set_session_id("short");
  response.set_namespace_fingerprint(std::string(32, 'f'));
  EXPECT_EQ(FromWire(response).status().message(),
            "the node's session_id has 5 bytes, must have 16");
  response.set_session_id(std::string(16, 's'));
  EXPECT_TRUE(FromWire(response).ok());
}

TEST(ProtoMapping, Match_WrongLeaseIsAMiss) {
  wire::LookupResponse response;
  response.set_matched_blocks(3);
  response.set_lease_id("short");
  const Match match = FromWire(response);
  EXPECT_TRUE(absl::IsDataLoss(match.node));
  EXPECT_EQ(match.matched_blocks, 0u);
}

TEST(ProtoMapping, Statuses_OfAnotherNumberAreDataLoss) {
  wire::StoreResponse response;
  response.add_statuses(wire::BLOCK_STATUS_OK);
  EXPECT_TRUE(StatusesFromWire(response, 1).ok());
  EXPECT_TRUE(absl::IsDataLoss(StatusesFromWire(response, 2).status()));
}

TEST(ProtoMapping, Loss_IsThereOnlyWithACodecSet) {
  wire::NamespaceInfo info;
  EXPECT_FALSE(FromWire(info).compact);
  info.mutable_compact()->set_bits_per_value(2.2);
  EXPECT_EQ(FromWire(info).compact->bits_per_value, 2.2);
  EXPECT_FALSE(FromWire(info).near_lossless);
}

TEST(ProtoMapping, Quality_IsTakenWhole) {
  wire::NamespaceInfo info;
  info.set_has_expected_error(true);
  auto& entry = *info.add_loss_by_length();
  entry.set_profile("compact");
  entry.mutable_loss()->set_tokens(8192);
  entry.mutable_loss()->set_text("prose");
  auto& quality = *info.add_quality();
  quality.set_profile("near-lossless");
  quality.set_samples(7);
  quality.set_error_ratio(1.25);
  quality.set_drift(true);
  const NamespaceInfo taken = FromWire(info);
  EXPECT_TRUE(taken.has_expected_error);
  ASSERT_EQ(taken.loss_by_length.size(), 1u);
  EXPECT_EQ(taken.loss_by_length[0].profile, "compact");
  EXPECT_EQ(taken.loss_by_length[0].loss.tokens, 8192u);
  EXPECT_EQ(taken.loss_by_length[0].loss.text, "prose");
  ASSERT_EQ(taken.quality.size(), 1u);
  EXPECT_EQ(taken.quality[0].profile, "near-lossless");
  EXPECT_EQ(taken.quality[0].samples, 7u);
  EXPECT_EQ(taken.quality[0].error_ratio, 1.25);
  EXPECT_TRUE(taken.quality[0].drift);
}

TEST(ProtoMapping, Places_KeepTheirChunks) {
  wire::Pages pages;
  ToWire(PageLayout{}, {{{16, 32}, 64}}, pages);
  EXPECT_EQ(pages.places(0).chunk_offsets_size(), 2);
  EXPECT_EQ(pages.places(0).first_token(), 64u);
}

}  // namespace
}  // namespace fq::client
