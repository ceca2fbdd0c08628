#include "server/rpc/validate.h"

#include <gtest/gtest.h>

#include "server/rpc/wire.h"

namespace fq {
namespace {

bool Says(const absl::Status& status, absl::StatusCode code, const std::string& part) {
  return status.code() == code && status.message().find(part) != absl::string_view::npos;
}
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

TEST(Validate, Length_NamesFieldAndBothValues) {
  EXPECT_TRUE(CheckLength("f", 2, 1, 2).ok());
  EXPECT_TRUE(Says(CheckLength("f", 3, 1, 2), kInvalid, "f has 3 bytes: must have 1..2"));
  EXPECT_TRUE(Says(CheckLength("f", 0, 4, 4), kInvalid, "f has 0 bytes: must have 4"));
}

TEST(Validate, Range_NamesFieldAndBothValues) {
  EXPECT_TRUE(CheckRange("f", 1, 1, 2).ok());
  EXPECT_TRUE(Says(CheckRange("f", 3, 1, 2), kInvalid, "f = 3: must be in 1..2"));
}

TEST(Validate, OneOf_ListsWhatIsAllowed) {
  EXPECT_TRUE(CheckOneOf("f", 8, {8, 16}).ok());
  EXPECT_TRUE(Says(CheckOneOf("f", 9, {8, 16}), kInvalid, "f = 9: must be one of 8, 16"));
}

TEST(Validate, Ids_Have16Bytes) {
  EXPECT_TRUE(CheckId("id", std::string(16, 'x')).ok());
  EXPECT_TRUE(Says(CheckId("id", "secret"), kInvalid, "id has 6 bytes: must have 16"));
  EXPECT_EQ(CheckId("id", "secret").message().find("secret"), absl::string_view::npos);
}

TEST(Validate, Keys_Are32BytesEachUpToTheLimit) {
  RequestLimits limits;
  limits.max_blocks_per_call = 2;
  EXPECT_TRUE(CheckKeys(std::string(64, 'k'), limits).ok());
  for (size_t bytes : {0, 1, 31, 33, 63}) {
    EXPECT_TRUE(Says(CheckKeys(std::string(bytes, 'k'), limits), kInvalid,
                     "keys has " + std::to_string(bytes) + " bytes"));
  }
  EXPECT_TRUE(Says(CheckKeys(std::string(96, 'k'), limits), absl::StatusCode::kResourceExhausted,
                   "keys: 3 blocks, max-blocks-per-call is 2"));
}

TEST(Validate, Floor_IsOneOfThreeOrUnspecified) {
  for (int floor = 0; floor <= 3; ++floor) EXPECT_TRUE(CheckFloor(floor).ok());
  for (int floor : {-1, 4, 99}) {
    EXPECT_TRUE(Says(CheckFloor(floor), kInvalid, "min_profile = " + std::to_string(floor)));
  }
}

}  // namespace
}  // namespace fq
