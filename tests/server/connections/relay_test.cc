#include "server/connections/relay.h"

#include <gtest/gtest.h>
#include <sys/ioctl.h>

#include <thread>
#include <vector>

#include "tests/server/connections/socket_pair.h"
#include "tests/testing/eventually.h"

namespace fq {
namespace {

class RelayTest : public testing::Test {
 protected:
  void Start(ConnectionTimes times = {kPatience, kPatience}) {
    thread_ = std::thread([this, times] {
      status_ = Relay(&stream_, inner_.first.get(), &room_, times, SteadyNow(), &flags_).Run();
      stream_.HangUp();
      inner_.first = OwnedFd(-1);
    });
  }
  absl::Status Join() {
    thread_.join();
    return status_;
  }
  void TearDown() override {
    if (!thread_.joinable()) return;
    flags_.hang_up = true;
    stream_.HangUp();
    thread_.join();
  }

  std::pair<OwnedFd, OwnedFd> outer_ = SocketPair(), inner_ = SocketPair();
  const OwnedFd& peer_ = outer_.second;
  OwnedFd& node_ = inner_.second;
  PeerStream stream_{std::move(outer_.first)};
  Relay::Flags flags_;
  RequestRoom room_{1 << 20};
  std::thread thread_;
  absl::Status status_;
};

TEST_F(RelayTest, Bytes_GoBothWays) {
  Start();
  SendAll(peer_, kHello + kCall);
  EXPECT_EQ(Receive(node_, kHello.size() + kCall.size()), kHello + kCall);
  EXPECT_TRUE(flags_.has_asked);
  const std::string answer(300'000, 'a');
  std::thread writer([&] {
    for (size_t at = 0; at < answer.size();) {
      const ssize_t n = send(node_.get(), answer.data() + at, answer.size() - at, 0);
      if (n > 0) at += static_cast<size_t>(n);
    }
  });
  EXPECT_EQ(Receive(peer_, answer.size()), answer);
  writer.join();
}

TEST_F(RelayTest, PeerEnds_NodeLearnsItAndItsLastWordsArrive) {
  Start();
  SendAll(peer_, kHello);
  shutdown(peer_.get(), SHUT_WR);
  EXPECT_EQ(Receive(node_, 1000), kHello);
  SendAll(node_, "bye");
  node_ = OwnedFd(-1);
  EXPECT_EQ(Receive(peer_, 1000), "bye");
  EXPECT_TRUE(Join().ok());
}

TEST_F(RelayTest, BrokenRule_EndsItWithTheReason) {
  Start();
  SendAll(peer_, "GET / HTTP/1.1\r\nHost: node\r\n\r\n");
  EXPECT_EQ(Join().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(HangsUp(node_));
}

TEST_F(RelayTest, PeerThatSaysNothing_IsGivenUp) {
  SendAll(peer_, kHello.substr(0, 30));
  Start({Milliseconds(50), kPatience});
  const absl::Status status = Join();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(status.message(), "no HTTP/2 within 50 ms");
}

// Nothing is read from it meanwhile, so that gRPC never has more than what the sockets hold.
TEST_F(RelayTest, PeerThatTakesNothing_IsNotHeardAndGivenUp) {
  const std::vector<std::byte> much(1 << 20);
  while (*stream_.Write(much) > 0) {
  }
  const int gives = inner_.first.get();
  Start({kPatience, Milliseconds(300)});
  SendAll(peer_, kHello);
  ASSERT_EQ(Receive(node_, kHello.size()), kHello);
  SendAll(node_, "answer");
  ASSERT_TRUE(Eventually([&] {  // it has the answer and cannot get rid of it, or has given up
    int bytes = -1;
    return ioctl(gives, FIONREAD, &bytes) != 0 || bytes == 0;
  }));
  send(peer_.get(), kCall.data(), kCall.size(), MSG_NOSIGNAL);
  const absl::Status status = Join();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(status.message(), "the peer takes nothing for 300 ms while 6 bytes wait");
  EXPECT_EQ(Receive(node_, 1), "");
}

// A burst that must wait ends with the peer that sent it.
TEST_F(RelayTest, PeerThatLeavesWhileItMustWait_IsGoneAtOnce) {
  Start();
  SendAll(peer_, kHello);
  std::string resets;
  for (int i = 0; i < 2000; ++i) resets += std::string("\0\0\4\3\0\0\0\0\1\0\0\0\x08", 13);
  SendAll(peer_, resets);
  EXPECT_EQ(Receive(node_, kHello.size() + 1300).size(), kHello.size() + 1300);
  outer_.second = OwnedFd(-1);
  EXPECT_TRUE(HangsUp(node_));
  EXPECT_TRUE(Join().ok());
}

TEST_F(RelayTest, ToldToHangUp_Ends) {
  Start();
  flags_.hang_up = true;
  stream_.HangUp();
  EXPECT_EQ(Join().code(), absl::StatusCode::kCancelled);
}

TEST(RelayBuffer, Drop_KeepsWhatIsLeft) {
  RelayBuffer buffer;
  std::fill_n(buffer.bytes.get(), RelayBuffer::kBytes, std::byte{1});
  buffer.bytes[RelayBuffer::kBytes - 1] = std::byte{7};
  buffer.end = RelayBuffer::kBytes;
  buffer.judged = RelayBuffer::kBytes - 1;
  EXPECT_TRUE(buffer.full());
  buffer.Drop(RelayBuffer::kBytes - 1);
  EXPECT_EQ(buffer.end, 1u);
  EXPECT_EQ(buffer.judged, 0u);
  EXPECT_EQ(buffer.bytes[0], std::byte{7});
  buffer.judged = 1;
  buffer.Drop(1);
  EXPECT_TRUE(buffer.empty());
}

}  // namespace
}  // namespace fq
