#include "server/segment_socket.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/testing/random.h"
#include "tests/testing/running_node.h"
#include "tests/testing/segment_client.h"

namespace fq {
namespace {

OwnedFd SealedMemory(uint64_t bytes) {
  OwnedFd fd(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  EXPECT_EQ(ftruncate(fd.get(), static_cast<off_t>(bytes)), 0);
  EXPECT_EQ(fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
  return fd;
}

class SegmentSocketTest : public testing::Test {
 protected:
  SegmentSocketTest() {
    SessionLimits limits;
    limits.segments = {2, 1 << 20};
    sessions_ = std::make_unique<SessionRegistry>(limits, SteadyNow);
    session_ = *sessions_->Open(std::make_shared<SlabSpace>(), "team");
    auto socket = SegmentSocket::Start({path_, 0600, sessions_.get(), &metrics_});
    EXPECT_TRUE(socket.ok()) << socket.status();
    socket_ = *std::move(socket);
  }

  OwnedFd Connect() { return ConnectToSegments(path_); }

  void ExpectRefused(const std::string& packet, std::vector<int> fds, absl::StatusCode code,
                     const std::string& part) {
    const SegmentAnswer answer = AskSegments(Connect(), packet, std::move(fds));
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
  const SegmentAnswer registered =
      AskSegments(peer, SegmentPacket(session_->id, 1, 0, 8192), {memory.get()});
  EXPECT_EQ(registered.code, 0u) << registered.text;
  ASSERT_NE(session_->segments.Find(registered.id), nullptr);
  EXPECT_EQ(session_->segments.Find(registered.id)->memory().size(), 8192u);
  EXPECT_EQ(AskSegments(peer, SegmentPacket(session_->id, 2, registered.id, 0), {}).code, 0u);
  EXPECT_EQ(session_->segments.size(), 0u);
}

TEST_F(SegmentSocketTest, BadPackets_AreRefusedWithFieldAndValue) {
  using Code = absl::StatusCode;
  const OwnedFd memory = SealedMemory(4096);
  const int fd = memory.get();
  const std::string good = SegmentPacket(session_->id, 1, 0, 4096);
  ExpectRefused(good.substr(0, 31), {fd}, Code::kInvalidArgument, "31");
  ExpectRefused(good + "x", {fd}, Code::kInvalidArgument, "33");
  ExpectRefused(std::string(5000, 'x'), {fd}, Code::kInvalidArgument, "packet of 5000 bytes");
  ExpectRefused(std::string(60000, 'x'), {fd}, Code::kInvalidArgument, "or more bytes");
  ExpectRefused("x", {}, Code::kInvalidArgument, "1 bytes");
  ExpectRefused(good, {}, Code::kInvalidArgument, "descriptors = 0");
  ExpectRefused(good, {fd, fd}, Code::kInvalidArgument, "descriptors = 2");
  ExpectRefused(SegmentPacket(session_->id, 2, 1, 0), {fd}, Code::kInvalidArgument,
                "descriptors = 1");
  ExpectRefused(SegmentPacket(session_->id, 0, 0, 4096), {fd}, Code::kInvalidArgument,
                "operation = 0");
  ExpectRefused(SegmentPacket(session_->id, 99, 0, 4096), {fd}, Code::kInvalidArgument,
                "operation = 99");
  ExpectRefused(SegmentPacket(session_->id, 1, 5, 4096), {fd}, Code::kInvalidArgument,
                "segment id = 5");
  ExpectRefused(SegmentPacket(session_->id, 2, 5, 1), {}, Code::kInvalidArgument, "bytes = 1");
  ExpectRefused(SegmentPacket(session_->id, 2, 5, 0), {}, Code::kNotFound, "segment_id = 5");
  ExpectRefused(SegmentPacket(session_->id, 1, 0, 4097), {fd}, Code::kInvalidArgument, "4097");
  ExpectRefused(SegmentPacket(session_->id, 1, 0, UINT64_MAX), {fd}, Code::kResourceExhausted,
                "18446744073709551615");
  ExpectRefused(SegmentPacket(RandomId{}, 1, 0, 4096), {fd}, Code::kUnauthenticated,
                "no such session");
}

TEST_F(SegmentSocketTest, RandomPackets_ChangeNothing) {
  Random random(20261124);
  const OwnedFd memory = SealedMemory(4096);
  for (int i = 0; i < 300; ++i) {
    std::string packet(random.Below(64), '\0');
    for (char& c : packet) c = static_cast<char>(random.Below(256));
    const std::vector<int> fds(random.Below(10), memory.get());
    if (packet.empty()) continue;
    EXPECT_NE(AskSegments(Connect(), packet, fds).code, 0u);
  }
  EXPECT_EQ(session_->segments.size(), 0u);
  EXPECT_EQ(AskSegments(Connect(), SegmentPacket(session_->id, 1, 0, 4096), {memory.get()}).code,
            0u);
}

TEST_F(SegmentSocketTest, OneConnectionTooMany_IsClosedAndTheOthersGoOn) {
  std::vector<OwnedFd> peers;
  for (int i = 0; i < 256; ++i) peers.push_back(Connect());
  const std::string packet = SegmentPacket(session_->id, 2, 9, 0);
  EXPECT_EQ(AskSegments(peers.back(), packet, {}).code,
            static_cast<uint32_t>(absl::StatusCode::kNotFound));
  const OwnedFd refused = Connect();
  char byte = 0;
  EXPECT_EQ(recv(refused.get(), &byte, 1, 0), 0);
  peers.pop_back();
  EXPECT_TRUE(Eventually([&] { return AskSegments(Connect(), packet, {}).code != UINT32_MAX; }));
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
