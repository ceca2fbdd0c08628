#include "server/connections/connection.h"

#include <gtest/gtest.h>
#include <sys/un.h>
#include <unistd.h>

#include <optional>
#include <string>

#include "tests/server/connections/socket_pair.h"
#include "tests/testing/running_node.h"
#include "tests/testing/test_certificate.h"

namespace fq {
namespace {

class ConnectionTest : public testing::Test {
 protected:
  ConnectionTest() {
    context_.peers = &peers_;
    context_.requests = &room_;
    context_.serve = [this](OwnedFd fd) {
      absl::MutexLock lock(&mutex_);
      grpcs_.emplace(std::move(fd));
    };
    context_.ended = [this](const Peer& peer, const absl::Status& status) {
      absl::MutexLock lock(&mutex_);
      ended_ = peer.address + ": " + status.ToString();
    };
  }
  bool Served() {
    absl::MutexLock lock(&mutex_);
    return grpcs_.has_value();
  }
  std::string Ended() {
    absl::MutexLock lock(&mutex_);
    return ended_;
  }
  std::unique_ptr<Connection> Connect(Peer::Transport transport) {
    Peer peer;
    peer.transport = transport;
    peer.address = "somewhere";
    return std::make_unique<Connection>(&context_, name_, std::move(sockets_.first), peer);
  }

  const std::string name_ = "test." + std::to_string(getpid());  // tests run side by side
  ConnectedPeers peers_;
  RequestRoom room_{1 << 20};
  ConnectionContext context_;
  std::pair<OwnedFd, OwnedFd> sockets_ = SocketPair();
  absl::Mutex mutex_;
  std::optional<OwnedFd> grpcs_;
  std::string ended_;
};

TEST_F(ConnectionTest, Grpc_SeesTheNameUnderWhichThePeerIsKnown) {
  const auto connection = Connect(Peer::Transport::kUnix);
  ASSERT_TRUE(Eventually([this] { return Served(); }));
  sockaddr_un address{};
  socklen_t bytes = sizeof(address);
  ASSERT_EQ(getpeername(grpcs_->get(), reinterpret_cast<sockaddr*>(&address), &bytes), 0);
  EXPECT_EQ(std::string(address.sun_path, bytes - offsetof(sockaddr_un, sun_path)),
            std::string(1, '\0') + name_);
  const auto peer = peers_.Find("unix-abstract:" + name_);
  ASSERT_NE(peer, nullptr);
  EXPECT_EQ(peer->address, "somewhere");
  SendAll(sockets_.second, kHello + kCall);
  EXPECT_EQ(Receive(*grpcs_, kHello.size() + kCall.size()), kHello + kCall);
  EXPECT_TRUE(Eventually([&] { return connection->has_asked(); }));
  grpcs_.reset();
  EXPECT_TRUE(Eventually([&] { return connection->is_over(); }));
  EXPECT_TRUE(Eventually([this] { return Ended() == "somewhere: OK"; }));
  EXPECT_EQ(peers_.size(), 0u);
}

TEST_F(ConnectionTest, HungUp_IsOverAndSaysWhy) {
  const auto connection = Connect(Peer::Transport::kUnix);
  ASSERT_TRUE(Eventually([this] { return Served(); }));
  connection->HangUp();
  EXPECT_TRUE(Eventually([&] { return connection->is_over(); }));
  EXPECT_TRUE(Eventually([this] { return Ended().find("given to another") != std::string::npos; }));
  EXPECT_TRUE(HangsUp(sockets_.second));
}

// Half-open handshakes cost a thread and a socket for a while; gRPC never hears of them.
TEST_F(ConnectionTest, HalfOpenHandshake_IsGivenUpAndNeverReachesGrpc) {
  const TempFolder folder;
  const TestCertificate node = MakeCertificate(folder.path(), "node");
  context_.tls = *TlsContext::Load({node.cert, node.key, ""});
  context_.times.introduction = Milliseconds(50);
  SendAll(sockets_.second, std::string("\x16\x03\x01\x00\xc8", 5));
  const auto connection = Connect(Peer::Transport::kTls);
  EXPECT_TRUE(Eventually(
      [this] { return Ended() == "somewhere: DEADLINE_EXCEEDED: no TLS handshake within 50 ms"; }));
  EXPECT_FALSE(Served());
  EXPECT_EQ(peers_.size(), 0u);
}

}  // namespace
}  // namespace fq
