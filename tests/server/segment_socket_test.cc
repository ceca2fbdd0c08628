#include "server/segment_socket.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>

#include "tests/testing/random.h"
#include "tests/testing/running_node.h"

namespace fq {
namespace {

struct Answer {
  uint32_t code = UINT32_MAX;  // no answer
  uint32_t id = 0;
  std::string text;
};

OwnedFd SealedMemory(uint64_t bytes) {
  OwnedFd fd(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  EXPECT_EQ(ftruncate(fd.get(), static_cast<off_t>(bytes)), 0);
  EXPECT_EQ(fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
  return fd;
}

std::string Packet(const RandomId& session, uint32_t operation, uint32_t id, uint64_t bytes) {
  std::string packet = ToBytes(session);
  packet.append(reinterpret_cast<const char*>(&operation), 4);
  packet.append(reinterpret_cast<const char*>(&id), 4);
  packet.append(reinterpret_cast<const char*>(&bytes), 8);
  return packet;
}

class SegmentSocketTest : public testing::Test {
 protected:
  SegmentSocketTest() {
    SessionLimits limits;
    limits.segments = {2, 1 << 20};
    sessions_ = std::make_unique<SessionRegistry>(limits, SteadyNow);
    session_ = *sessions_->Open(std::make_shared<SlabSpace>());
    auto socket = SegmentSocket::Start({path_, 0600, sessions_.get(), &metrics_});
    EXPECT_TRUE(socket.ok()) << socket.status();
    socket_ = *std::move(socket);
  }

  OwnedFd Connect() {
    OwnedFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    const timeval limit{2, 0};
    setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    sockaddr_un at{};
    at.sun_family = AF_UNIX;
    std::memcpy(at.sun_path, path_.data(), path_.size());
    EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&at), sizeof(at)), 0);
    return fd;
  }

  Answer Ask(const OwnedFd& peer, const std::string& packet, std::vector<int> fds) {
    iovec data{const_cast<char*>(packet.data()), packet.size()};
    std::vector<char> control(CMSG_SPACE(sizeof(int) * fds.size()));
    msghdr header{};
    header.msg_iov = &data;
    header.msg_iovlen = 1;
    if (!fds.empty()) {
      header.msg_control = control.data();
      header.msg_controllen = control.size();
      cmsghdr* c = CMSG_FIRSTHDR(&header);
      c->cmsg_level = SOL_SOCKET;
      c->cmsg_type = SCM_RIGHTS;
      c->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
      std::memcpy(CMSG_DATA(c), fds.data(), sizeof(int) * fds.size());
    }
    EXPECT_GE(sendmsg(peer.get(), &header, MSG_NOSIGNAL), 0);
    char reply[4096];
    const ssize_t bytes = recv(peer.get(), reply, sizeof(reply), 0);
    Answer answer;
    if (bytes < 8) return answer;
    std::memcpy(&answer.code, reply, 4);
    std::memcpy(&answer.id, reply + 4, 4);
    answer.text.assign(reply + 8, static_cast<size_t>(bytes) - 8);
    return answer;
  }

  void ExpectRefused(const std::string& packet, std::vector<int> fds, absl::StatusCode code,
                     const std::string& part) {
    const Answer answer = Ask(Connect(), packet, std::move(fds));
    EXPECT_EQ(answer.code, static_cast<uint32_t>(code)) << answer.text;
    EXPECT_EQ(answer.id, 0u);
    EXPECT_NE(answer.text.find(part), std::string::npos) << answer.text;
    EXPECT_EQ(session_->segments.size(), 0u);
  }

  TempFolder folder_;
  const std::string path_ = folder_.path() + "/x.seg";
  Metrics metrics_;
  std::unique_ptr<SessionRegistry> sessions_;
  std::shared_ptr<Session> session_;
  std::unique_ptr<SegmentSocket> socket_;
};

TEST_F(SegmentSocketTest, RegisterAndUnregister_OnOneConnection) {
  const OwnedFd memory = SealedMemory(8192), peer = Connect();
  const Answer registered = Ask(peer, Packet(session_->id, 1, 0, 8192), {memory.get()});
  EXPECT_EQ(registered.code, 0u) << registered.text;
  ASSERT_NE(session_->segments.Find(registered.id), nullptr);
  EXPECT_EQ(session_->segments.Find(registered.id)->memory().size(), 8192u);
  EXPECT_EQ(Ask(peer, Packet(session_->id, 2, registered.id, 0), {}).code, 0u);
  EXPECT_EQ(session_->segments.size(), 0u);
}

TEST_F(SegmentSocketTest, BadPackets_AreRefusedWithFieldAndValue) {
  using Code = absl::StatusCode;
  const OwnedFd memory = SealedMemory(4096);
  const int fd = memory.get();
  const std::string good = Packet(session_->id, 1, 0, 4096);
  ExpectRefused(good.substr(0, 31), {fd}, Code::kInvalidArgument, "31");
  ExpectRefused(good + "x", {fd}, Code::kInvalidArgument, "33");
  ExpectRefused(std::string(5000, 'x'), {fd}, Code::kInvalidArgument, "33 or more");
  ExpectRefused("x", {}, Code::kInvalidArgument, "1 bytes");
  ExpectRefused(good, {}, Code::kInvalidArgument, "descriptors = 0");
  ExpectRefused(good, {fd, fd}, Code::kInvalidArgument, "descriptors = 2");
  ExpectRefused(Packet(session_->id, 2, 1, 0), {fd}, Code::kInvalidArgument, "descriptors = 1");
  ExpectRefused(Packet(session_->id, 0, 0, 4096), {fd}, Code::kInvalidArgument, "operation = 0");
  ExpectRefused(Packet(session_->id, 99, 0, 4096), {fd}, Code::kInvalidArgument, "operation = 99");
  ExpectRefused(Packet(session_->id, 1, 5, 4096), {fd}, Code::kInvalidArgument, "segment id = 5");
  ExpectRefused(Packet(session_->id, 2, 5, 1), {}, Code::kInvalidArgument, "bytes = 1");
  ExpectRefused(Packet(session_->id, 2, 5, 0), {}, Code::kNotFound, "segment_id = 5");
  ExpectRefused(Packet(session_->id, 1, 0, 4097), {fd}, Code::kInvalidArgument, "4097");
  ExpectRefused(Packet(session_->id, 1, 0, UINT64_MAX), {fd}, Code::kResourceExhausted,
                "18446744073709551615");
  ExpectRefused(Packet(RandomId{}, 1, 0, 4096), {fd}, Code::kUnauthenticated, "no such session");
}

TEST_F(SegmentSocketTest, RandomPackets_ChangeNothing) {
  Random random(20261124);
  const OwnedFd memory = SealedMemory(4096);
  for (int i = 0; i < 300; ++i) {
    std::string packet(random.Below(64), '\0');
    for (char& c : packet) c = static_cast<char>(random.Below(256));
    const std::vector<int> fds(random.Below(10), memory.get());
    if (packet.empty()) continue;
    EXPECT_NE(Ask(Connect(), packet, fds).code, 0u);
  }
  EXPECT_EQ(session_->segments.size(), 0u);
  EXPECT_EQ(Ask(Connect(), Packet(session_->id, 1, 0, 4096), {memory.get()}).code, 0u);
}

TEST_F(SegmentSocketTest, OneConnectionTooMany_IsClosedAndTheOthersGoOn) {
  std::vector<OwnedFd> peers;
  for (int i = 0; i < 256; ++i) peers.push_back(Connect());
  const std::string packet = Packet(session_->id, 2, 9, 0);
  EXPECT_EQ(Ask(peers.back(), packet, {}).code, static_cast<uint32_t>(absl::StatusCode::kNotFound));
  const OwnedFd refused = Connect();
  char byte = 0;
  EXPECT_EQ(recv(refused.get(), &byte, 1, 0), 0);
  peers.pop_back();
  EXPECT_TRUE(Eventually([&] { return Ask(Connect(), packet, {}).code != UINT32_MAX; }));
}

TEST_F(SegmentSocketTest, Destroyed_RemovesItsFile) {
  socket_.reset();
  EXPECT_NE(access(path_.c_str(), F_OK), 0);
}

TEST_F(SegmentSocketTest, PathTaken_IsUnavailable) {
  const auto second = SegmentSocket::Start({path_, 0600, sessions_.get(), &metrics_});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(second.status().message().find(path_), absl::string_view::npos);
}

}  // namespace
}  // namespace fq
