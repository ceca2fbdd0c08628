#include "server/connections/listen_tcp.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace fq {
namespace {

TEST(ListenTcp, PortZero_TakesAFreeOneThatIsThenTaken) {
  const auto first = ListenTcp({"127.0.0.1", 0, true});
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->sockets.size(), 1u);
  EXPECT_GT(first->port, 0);
  const auto second = ListenTcp({"127.0.0.1", static_cast<uint16_t>(first->port), true});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(second.status().message().find(absl::StrCat("127.0.0.1:", first->port)),
            absl::string_view::npos)
      << second.status();
}

TEST(ListenTcp, Name_AllItsAddressesHaveOnePort) {
  const auto listeners = ListenTcp({"localhost", 0, true});
  ASSERT_TRUE(listeners.ok()) << listeners.status();
  EXPECT_GE(listeners->sockets.size(), 1u);
  EXPECT_GT(listeners->port, 0);
}

TEST(ListenTcp, UnknownHost_IsUnavailableAndNamed) {
  const auto listeners = ListenTcp({"no such host", 7600, false});
  EXPECT_EQ(listeners.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(listeners.status().message().find("no such host:7600"), absl::string_view::npos);
}

}  // namespace
}  // namespace fq
