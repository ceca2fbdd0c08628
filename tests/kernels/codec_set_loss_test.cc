#include "kernels/codec_set_loss.h"

#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fq {
namespace {

using ::testing::HasSubstr;

Json LossOf(double excess, int tokens) {
  return {{"perplexity_excess_percent", excess},
          {"standard_error_percent", 0.2},
          {"kl_divergence", 0.01},
          {"top1_agreement_percent", 95.5},
          {"bits_per_value", 2.1},
          {"tokens", tokens},
          {"text", "prose-1, code-2"}};
}

Json AtLength(const std::string& profile, int tokens) {
  Json entry = LossOf(-0.1, tokens);
  entry["profile"] = profile;
  return entry;
}

template <typename T>
void ExpectRefused(const absl::StatusOr<T>& result, const std::string& message) {
  ASSERT_FALSE(result.ok()) << message;
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr(message));
}

TEST(FindLoss, AllFields_AreTaken) {
  const Json root = {{"loss", {{"compact", LossOf(0.8, 2048)}}}};
  const auto loss = FindLoss(root, "compact");
  ASSERT_TRUE(loss.ok()) << loss.status();
  EXPECT_EQ(loss->perplexity_excess_percent, 0.8);
  EXPECT_EQ(loss->standard_error_percent, 0.2);
  EXPECT_EQ(loss->top1_agreement_percent, 95.5);
  EXPECT_EQ(loss->tokens, 2048);
  EXPECT_EQ(loss->text, "prose-1, code-2");
}

TEST(FindLoss, MissingOrWrong_RefusedByName) {
  ExpectRefused(FindLoss(Json::object(), "compact"), "loss is missing");
  Json root = {{"loss", {{"compact", LossOf(0.8, 2048)}}}};
  ExpectRefused(FindLoss(root, "near-lossless"), "near-lossless is missing");
  root["loss"]["compact"]["text"] = 7;
  ExpectRefused(FindLoss(root, "compact"), "text is number, expected a string");
  root["loss"]["compact"]["tokens"] = -1;
  ExpectRefused(FindLoss(root, "compact"), "tokens is -1");
}

TEST(FindLossByLength, Absent_Empty) {
  const auto none = FindLossByLength(Json::object());
  ASSERT_TRUE(none.ok());
  EXPECT_TRUE(none->empty());
}

TEST(FindLossByLength, Entries_InOrder) {
  const auto list = FindLossByLength(
      {{"loss_by_length", {AtLength("compact", 4096), AtLength("near-lossless", 8192)}}});
  ASSERT_TRUE(list.ok()) << list.status();
  ASSERT_EQ(list->size(), 2u);
  EXPECT_EQ((*list)[0].profile, "compact");
  EXPECT_EQ((*list)[0].loss.perplexity_excess_percent, -0.1);
  EXPECT_EQ((*list)[1].profile, "near-lossless");
  EXPECT_EQ((*list)[1].loss.tokens, 8192);
}

TEST(FindLossByLength, WrongEntries_RefusedByName) {
  ExpectRefused(FindLossByLength({{"loss_by_length", 3}}), "loss_by_length is number");
  ExpectRefused(FindLossByLength({{"loss_by_length", {AtLength("exact", 1)}}}),
                "profile is exact, expected compact or near-lossless");
  Json entry = AtLength("compact", 1);
  entry.erase("bits_per_value");
  ExpectRefused(FindLossByLength({{"loss_by_length", {entry}}}), "bits_per_value is missing");
  entry = AtLength("compact", 1);
  entry["kl_divergence"] = -0.5;
  ExpectRefused(FindLossByLength({{"loss_by_length", {entry}}}), "kl_divergence is -0.5");
  Json list = Json::array();
  for (int i = 0; i < 256; ++i) list.push_back(AtLength("compact", i));
  EXPECT_TRUE(FindLossByLength({{"loss_by_length", list}}).ok());
  list.push_back(AtLength("compact", 256));
  ExpectRefused(FindLossByLength({{"loss_by_length", list}}), "257 items, expected at most 256");
}

Json Errors() {  // 2 layers of 1 head
  return {{"expected_error",
           {{"compact", {{{0.1, 0.2}}, {{0.3, 0.4}}}}, {"near-lossless", {{{0, 1}}, {{2, 3}}}}}}};
}

TEST(FindExpectedError, Absent_Empty) {
  const auto none = FindExpectedError(Json::object(), 2, 1);
  ASSERT_TRUE(none.ok());
  EXPECT_TRUE(none->compact.empty());
  EXPECT_TRUE(none->near_lossless.empty());
}

TEST(FindExpectedError, Whole_LayerMajorKThenV) {
  const auto expected = FindExpectedError(Errors(), 2, 1);
  ASSERT_TRUE(expected.ok()) << expected.status();
  EXPECT_EQ(expected->compact, (std::vector<double>{0.1, 0.2, 0.3, 0.4}));
  EXPECT_EQ(expected->near_lossless, (std::vector<double>{0, 1, 2, 3}));
}

TEST(FindExpectedError, WrongShape_RefusedWithBothValues) {
  ExpectRefused(FindExpectedError(Errors(), 3, 1),
                "expected_error: compact is 2 items, expected 3");
  ExpectRefused(FindExpectedError(Errors(), 2, 2), "of layer 0 is 1 items, expected 2");
  Json errors = Errors();
  errors["expected_error"]["near-lossless"][1][0] = {0.5};
  ExpectRefused(FindExpectedError(errors, 2, 1),
                "near-lossless of layer 1, head 0 is 1 items, expected 2");
  errors["expected_error"].erase("near-lossless");
  ExpectRefused(FindExpectedError(errors, 2, 1), "near-lossless is missing");
  ExpectRefused(FindExpectedError({{"expected_error", 1}}, 2, 1), "outside an object");
}

TEST(FindExpectedError, WrongNumbers_Refused) {
  for (const Json& wrong :
       {Json(-0.1), Json("0.1"), Json(nullptr), Json(std::numeric_limits<double>::infinity())}) {
    Json errors = Errors();
    errors["expected_error"]["compact"][1][0][1] = wrong;
    ExpectRefused(FindExpectedError(errors, 2, 1), "compact of layer 1, head 0 is");
  }
}

}  // namespace
}  // namespace fq
