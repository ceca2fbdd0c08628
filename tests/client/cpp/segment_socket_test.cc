// Against a socket that answers as told; a real node's: session_test.cc.
#include "client/cpp/segment_socket.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <thread>

#include "absl/time/clock.h"
#include "tests/testing/eventually.h"

namespace fq::client {
namespace {

class SegmentSocket : public testing::Test {
 protected:
  SegmentSocket() {
    EXPECT_NE(mkdtemp(folder_.data()), nullptr);
    door_.socket_path = folder_ + "/seg";
    door_.session_id.fill(7);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, door_.socket_path.c_str(), sizeof(address.sun_path) - 1);
    listener_ = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(listener_, 1), 0);
  }
  ~SegmentSocket() override {
    close(listener_);
    std::filesystem::remove_all(folder_);
  }

  // Takes one request, keeps it, answers with `reply`.
  void Answer(const std::string& reply) {
    const int fd = accept(listener_, nullptr, nullptr);
    iovec packet{request_, sizeof(request_)};
    char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &packet;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    request_bytes_ = recvmsg(fd, &message, 0);
    if (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr) {
      ++descriptors_;
      int received = -1;
      std::memcpy(&received, CMSG_DATA(header), sizeof(received));
      close(received);
    }
    EXPECT_EQ(send(fd, reply.data(), reply.size(), 0), static_cast<ssize_t>(reply.size()));
    close(fd);
  }

  static std::string Reply(uint32_t code, uint32_t id, const std::string& text) {
    std::string reply(8, '\0');
    std::memcpy(reply.data(), &code, 4);
    std::memcpy(reply.data() + 4, &id, 4);
    return reply + text;
  }
  static absl::Time Soon() { return absl::Now() + absl::FromChrono(kPatience); }
  absl::StatusOr<uint32_t> Register() {
    return RegisterSegment(door_, *segment_->current().fd, 4096, Soon());
  }

  std::string folder_ = "/tmp/fqs-XXXXXX";
  SegmentDoor door_;
  std::shared_ptr<Segment> segment_ = *Segment::Create(4096);
  int listener_ = -1;
  unsigned char request_[64] = {};
  ssize_t request_bytes_ = 0;
  int descriptors_ = 0;
};

TEST_F(SegmentSocket, Register_SendsThePacketOfTheProtocol) {
  std::thread node([this] { Answer(Reply(0, 42, "")); });
  const auto id = Register();
  node.join();
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_EQ(*id, 42u);
  EXPECT_EQ(request_bytes_, 32);
  EXPECT_EQ(request_[0], 7);
  EXPECT_EQ(request_[16], 1);  // register
  EXPECT_EQ(request_[20], 0);
  EXPECT_EQ(request_[24] + 256 * request_[25], 4096);
  EXPECT_EQ(descriptors_, 1);
}

TEST_F(SegmentSocket, Unregister_SendsTheId) {
  std::thread node([this] { Answer(Reply(0, 0, "")); });
  EXPECT_TRUE(UnregisterSegment(door_, 5, Soon()).ok());
  node.join();
  EXPECT_EQ(request_[16], 2);
  EXPECT_EQ(request_[20], 5);
  EXPECT_EQ(descriptors_, 0);
}

TEST_F(SegmentSocket, NodeRefuses_GivesItsReason) {
  std::thread node([this] { Answer(Reply(8, 0, "max-segments is 16")); });
  const auto id = Register();
  node.join();
  EXPECT_TRUE(absl::IsResourceExhausted(id.status()));
  EXPECT_EQ(id.status().message(), "max-segments is 16");
}

TEST_F(SegmentSocket, ReplyTooShort_IsUnavailable) {
  std::thread node([this] { Answer("abc"); });
  EXPECT_TRUE(absl::IsUnavailable(Register().status()));
  node.join();
}

TEST_F(SegmentSocket, NobodyAnswers_EndsAtTheDeadline) {
  const auto id =
      RegisterSegment(door_, *segment_->current().fd, 4096, absl::Now() + absl::Milliseconds(50));
  EXPECT_TRUE(absl::IsDeadlineExceeded(id.status())) << id.status();
}

TEST_F(SegmentSocket, NobodyThere_IsUnavailable) {
  door_.socket_path = folder_ + "/other";
  EXPECT_TRUE(absl::IsUnavailable(Register().status()));
}

TEST_F(SegmentSocket, PathTooLong_IsInvalid) {
  door_.socket_path = std::string(200, 'x');
  EXPECT_TRUE(absl::IsInvalidArgument(Register().status()));
}

}  // namespace
}  // namespace fq::client
