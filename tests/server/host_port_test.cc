#include "server/host_port.h"

#include <gtest/gtest.h>

namespace fq {
namespace {

TEST(HostPort, LoopbackForms_AreLoopback) {
  for (const char* text : {"127.0.0.1:7600", "127.9.9.9:1", "[::1]:7600", "localhost:0"}) {
    const auto at = ParseHostPort("listen", text);
    ASSERT_TRUE(at.ok()) << text;
    EXPECT_TRUE(at->loopback) << text;
  }
}

TEST(HostPort, OtherAddresses_AreNotLoopback) {
  for (const char* text : {"0.0.0.0:7600", "[::]:7600", "10.0.0.1:1", "example.com:1",
                           "128.0.0.1:1", "localhost.evil.com:1"}) {
    const auto at = ParseHostPort("listen", text);
    ASSERT_TRUE(at.ok()) << text;
    EXPECT_FALSE(at->loopback) << text;
  }
}

TEST(HostPort, Malformed_IsRefusedWithOptionAndText) {
  for (const char* text : {"", "7600", ":7600", "host:", "host:65536", "host:-1", "host:port"}) {
    const auto at = ParseHostPort("listen", text);
    ASSERT_FALSE(at.ok()) << text;
    EXPECT_NE(at.status().message().find("--listen"), absl::string_view::npos);
    EXPECT_NE(at.status().message().find(text), absl::string_view::npos);
  }
}

}  // namespace
}  // namespace fq
