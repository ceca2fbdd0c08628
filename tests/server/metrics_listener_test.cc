#include "server/metrics_listener.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "server/segments.h"

namespace fq {
namespace {

std::string Get(int port) {
  const OwnedFd fd(socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_port = htons(static_cast<uint16_t>(port));
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&at), sizeof(at)), 0);
  const std::string request = "GET /metrics HTTP/1.0\r\n\r\n";
  EXPECT_EQ(write(fd.get(), request.data(), request.size()), static_cast<ssize_t>(request.size()));
  std::string answer(1 << 16, '\0');
  size_t size = 0;
  for (ssize_t n; (n = read(fd.get(), &answer[size], answer.size() - size)) > 0;) {
    size += static_cast<size_t>(n);
    if (size == answer.size()) answer.resize(2 * size);
  }
  answer.resize(size);
  return answer;
}

TEST(MetricsListener, Get_ShowsTheNodesMetrics) {
  Metrics metrics;
  const auto listener = MetricsListener::Start("127.0.0.1:0", &metrics);
  ASSERT_TRUE(listener.ok()) << listener.status();
  const std::string answer = Get((*listener)->port());
  EXPECT_NE(answer.find("200 OK"), std::string::npos);
  EXPECT_NE(answer.find("# HELP fq_leases Leases held."), std::string::npos);
}

TEST(MetricsListener, PortTaken_IsUnavailableAndNamesIt) {
  Metrics metrics;
  const auto first = MetricsListener::Start("127.0.0.1:0", &metrics);
  ASSERT_TRUE(first.ok());
  const std::string address = absl::StrCat("127.0.0.1:", (*first)->port());
  const auto second = MetricsListener::Start(address, &metrics);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(second.status().message().find("--metrics-listen = " + address + ": cannot listen"),
            absl::string_view::npos)
      << second.status();
}

}  // namespace
}  // namespace fq
