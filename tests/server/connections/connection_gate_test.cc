#include "server/connections/connection_gate.h"

#include <gtest/gtest.h>
#include <sys/un.h>

#include <cstring>

#include "tests/server/connections/socket_pair.h"
#include "tests/testing/running_node.h"

namespace fq {
namespace {

class ConnectionGateTest : public testing::Test {
 protected:
  explicit ConnectionGateTest(uint32_t max_connections = 2)
      : node_([&](Options& o) { o.max_connections = max_connections; }) {}

  // Connected; has said hello, and when `asks` opened a call that never ends. The answer to what
  // follows the call tells that the node has seen it.
  OwnedFd Connect(bool asks) {
    OwnedFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un at{};
    at.sun_family = AF_UNIX;
    std::memcpy(at.sun_path, node_.options().socket.data(), node_.options().socket.size());
    EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&at), sizeof(at)), 0);
    if (asks) SendAll(fd, kHello + Call() + kPing);
    EXPECT_TRUE(asks ? Receives(fd, kPong) : !Receive(fd, 1).empty());
    return fd;
  }
  static std::string Call() {
    const std::string path = "/flashquant.v1.KvCache/Session", type = "application/grpc";
    auto text = [](const std::string& t) { return static_cast<char>(t.size()) + t; };
    const std::string block = "\x83\x86\x04" + text(path) + "\x01" + text("node") + "\x0f\x10" +
                              text(type) + std::string("\0", 1) + text("te") + text("trailers");
    return std::string("\0\0", 2) + static_cast<char>(block.size()) +
           std::string("\1\4\0\0\0\1", 6) + block;
  }
  double Refused() {
    return node_.node().metrics().Values()["fq_connections_refused_total{reason=\"limit\"}"];
  }
  bool Connected(size_t count) {
    return Eventually([&] { return node_.node().peers().size() == count; });
  }

  RunningNode node_;
};

TEST_F(ConnectionGateTest, Full_TheOldestThatNeverAskedMakesRoom) {
  const OwnedFd asks = Connect(true);
  const OwnedFd silent = Connect(false);
  ASSERT_TRUE(Connected(2));
  const OwnedFd newcomer = Connect(true);
  EXPECT_TRUE(HangsUp(silent));
  EXPECT_TRUE(Connected(2));
  EXPECT_TRUE(Eventually([&] { return Refused() == 1; }));
}

TEST_F(ConnectionGateTest, FullOfCallers_TheNewcomerIsRefusedUntilOneLeaves) {
  OwnedFd first = Connect(true);
  const OwnedFd second = Connect(true);
  ASSERT_TRUE(Connected(2));
  EXPECT_FALSE(TestClient(node_).opened().ok());
  EXPECT_TRUE(Eventually([&] { return Refused() >= 1; }));
  first = OwnedFd(-1);
  // Its place is free a little after it is forgotten.
  EXPECT_TRUE(Eventually([&] { return TestClient(node_).opened().ok(); }));
}

TEST_F(ConnectionGateTest, Stop_HangsUpAndRemovesTheSocket) {
  const OwnedFd peer = Connect(true);
  const std::string path = node_.options().socket;
  node_.Stop();
  EXPECT_TRUE(HangsUp(peer));
  EXPECT_NE(access(path.c_str(), F_OK), 0);
}

}  // namespace
}  // namespace fq
