#include "server/rpc/status.h"

#include <gtest/gtest.h>

#include "server/retry_after.h"

namespace fq {
namespace {

TEST(Status, EveryCode_IsTheSameOnTheWire) {
  for (int code = 1; code <= 16; ++code) {
    const grpc::Status status = ToGrpc(absl::Status(static_cast<absl::StatusCode>(code), "text"));
    EXPECT_EQ(status.error_code(), code);
    EXPECT_EQ(status.error_message(), "text");
  }
  EXPECT_TRUE(ToGrpc(absl::OkStatus()).ok());
}

TEST(Status, RetryAfter_IsFoundWhereItWasPut) {
  EXPECT_EQ(RetryAfterMs(WithRetryAfter(absl::UnavailableError("x"), 20)), 20u);
  EXPECT_FALSE(RetryAfterMs(absl::UnavailableError("x")).has_value());
}

}  // namespace
}  // namespace fq
