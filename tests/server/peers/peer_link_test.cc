// The order, the clock and the end of a peer link, with sockets in NCCL's place and the worker's
// end in the test's hands.
#include "server/peers/peer_link.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <mutex>

#include "tests/testing/guarded_memory.h"
#include "tests/testing/running_node.h"
#include "tests/testing/socket_comm.h"

#include <unistd.h>

namespace fq {
namespace {

constexpr uint64_t kWindow = 1 << 20;

struct Window {
  Window() : fd(CreateMemfd(kWindow)), memory(fd, kWindow) {}
  ~Window() { close(fd); }
  PeerRegion At(uint64_t offset, uint64_t bytes) const { return {memory.device() + offset, bytes}; }
  void Fill(uint64_t offset, uint64_t bytes, int value) {
    std::memset(memory.host() + offset, value, bytes);
  }
  bool Holds(uint64_t offset, uint64_t bytes, int value) const {
    for (uint64_t i = offset; i < offset + bytes; ++i) {
      if (memory.host()[i] != static_cast<std::byte>(value)) return false;
    }
    return true;
  }
  const int fd;
  const GuardedMemory memory;
};

// What a link has told.
struct Told {
  std::mutex mutex;
  uint64_t sent = 0, received = 0;
  std::vector<std::string> ends;
};

class PeerLinkTest : public testing::Test {
 protected:
  PeerLinkTest() : transport_(folder_.path()) {}

  static constexpr Milliseconds kTimeout{50};

  // The node's side; nobody has come yet.
  void Open() {
    down_id_ = *transport_.MakeId();
    up_id_ = *transport_.MakeId();
    PeerLink::Parts parts;
    parts.down = *transport_.Join(down_id_, PeerDirection::kSend);
    parts.up = *transport_.Join(up_id_, PeerDirection::kReceive);
    parts.hello = node_->At(0, 256);
    parts.window = std::shared_ptr<const void>(node_, node_.get());
    parts.timeout = kTimeout;
    parts.clock = [this] { return clock_.Now(); };
    parts.moved = [told = told_](PeerDirection direction, uint64_t bytes) {
      const std::lock_guard lock(told->mutex);
      (direction == PeerDirection::kSend ? told->sent : told->received) += bytes;
    };
    parts.broken = [told = told_](PeerLinkEnd end, const std::string& why) {
      const std::lock_guard lock(told->mutex);
      told->ends.push_back(std::string(PeerLinkEndName(end)) + ": " + why);
    };
    link_ = std::make_unique<PeerLink>(std::move(parts));
  }

  // The worker's part of an operation, until it is done.
  bool Move(PeerComm& comm, const PeerRegions& regions, uint64_t sequence) {
    EXPECT_TRUE(comm.Start({&regions}).ok());
    absl::StatusOr<uint64_t> done;
    return Eventually([&] {
             done = comm.Completed();
             return !done.ok() || *done == sequence + 1;
           }) &&
           done.ok();
  }
  void Greet() {
    down_ = *ConnectSocketComm(down_id_, PeerDirection::kReceive);
    up_ = *ConnectSocketComm(up_id_, PeerDirection::kSend);
    ASSERT_TRUE(Move(*down_, {worker_.At(0, 256)}, 0));
    ASSERT_TRUE(Move(*up_, {worker_.At(0, 256)}, 0));
  }
  // Lets time pass until the link has ended.
  bool EndsInTime() {
    return Eventually([&] {
      clock_.Advance(kTimeout);
      return link_->ended();
    });
  }
  std::vector<std::string> Ends() const {
    const std::lock_guard lock(told_->mutex);
    return told_->ends;
  }

  TempFolder folder_;
  SocketTransport transport_;
  const std::shared_ptr<Window> node_ = std::make_shared<Window>();
  Window worker_;
  const std::shared_ptr<Told> told_ = std::make_shared<Told>();
  FakeClock clock_;
  PeerId down_id_{}, up_id_{};
  std::unique_ptr<PeerLink> link_;
  std::unique_ptr<PeerComm> down_, up_;
};

// Sends arrive in the order of their numbers, each with its own bytes, and are let go once the
// worker has them.
TEST_F(PeerLinkTest, Sends_ArriveInOrder) {
  Open();
  Greet();
  std::vector<std::weak_ptr<int>> kept;
  for (int i = 1; i <= 10; ++i) {
    node_->Fill(4096 * i, 4096, i);
    const auto keep = std::make_shared<int>(i);
    kept.push_back(keep);
    const auto sequence =
        link_->Send({node_->At(4096 * i, 1024), node_->At(4096 * i + 2048, 512)}, keep);
    ASSERT_TRUE(sequence.ok());
    EXPECT_EQ(*sequence, static_cast<uint64_t>(i));
  }
  EXPECT_FALSE(kept[0].expired());
  for (int i = 1; i <= 10; ++i) {
    ASSERT_TRUE(Move(*down_, {worker_.At(4096 * i, 1024), worker_.At(4096 * i + 2048, 512)}, i));
    EXPECT_TRUE(worker_.Holds(4096 * i, 1024, i));
    EXPECT_TRUE(worker_.Holds(4096 * i + 1024, 1024, 0));
    EXPECT_TRUE(Eventually([&] { return kept[i - 1].expired(); }));
  }
  const std::lock_guard lock(told_->mutex);
  EXPECT_EQ(told_->sent, 10u * 1536);
}

struct Order {
  std::mutex mutex;
  std::vector<uint64_t> sequences;
};

// Receives that are named in another order than they are sent wait for their turn.
TEST_F(PeerLinkTest, Receives_WaitForTheirTurn) {
  Open();
  Greet();
  const auto order = std::make_shared<Order>();
  for (uint64_t sequence : {3, 1, 2}) {
    ASSERT_TRUE(link_
                    ->Receive(sequence, {node_->At(4096 * sequence, 4096)},
                              [order, sequence](const absl::Status& status) {
                                EXPECT_TRUE(status.ok()) << status;
                                const std::lock_guard lock(order->mutex);
                                order->sequences.push_back(sequence);
                              })
                    .ok());
  }
  for (int sequence = 1; sequence <= 3; ++sequence) {
    worker_.Fill(0, 4096, 40 + sequence);
    ASSERT_TRUE(Move(*up_, {worker_.At(0, 4096)}, sequence));
  }
  ASSERT_TRUE(Eventually([&] {
    const std::lock_guard lock(order->mutex);
    return order->sequences.size() == 3;
  }));
  EXPECT_EQ(order->sequences, (std::vector<uint64_t>{1, 2, 3}));
  for (int i = 1; i <= 3; ++i) EXPECT_TRUE(node_->Holds(4096 * i, 4096, 40 + i));
}

// A number that was named, is over, or lies too far ahead is refused with both values.
TEST_F(PeerLinkTest, Receive_OfAnotherNumber_IsRefused) {
  Open();  // nobody comes, so nothing is started
  const auto unexpected = [](const absl::Status&) {};
  const auto receive = [&](uint64_t sequence) {
    return link_->Receive(sequence, {node_->At(0, 256)}, unexpected);
  };
  EXPECT_TRUE(receive(1).ok());
  EXPECT_TRUE(receive(PeerLink::kMaxWaiting).ok());
  for (uint64_t sequence : {uint64_t{0}, uint64_t{1}, PeerLink::kMaxWaiting + 1}) {
    const absl::Status status = receive(sequence);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_NE(status.message().find("must be one of the 128 from 1"), std::string::npos) << status;
  }
}

// Loads beyond the room are refused: nothing piles up for a worker that does not receive.
TEST_F(PeerLinkTest, Sends_BeyondTheRoom_AreRefused) {
  Open();  // nobody comes, so nothing is started
  absl::Status status;
  uint64_t sent = 0;
  for (; status.ok() && sent < 2 * PeerLink::kMaxWaiting; ++sent) {
    status = link_->Send({node_->At(0, 256)}, nullptr).status();
  }
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_EQ(sent, PeerLink::kMaxWaiting);  // operation 0 waits too, and the last is refused
}

// The worker does not receive: the link breaks, whatever it held is let go, calls are refused.
TEST_F(PeerLinkTest, NoProgress_BreaksAfterTheTimeout) {
  Open();
  Greet();
  const auto keep = std::make_shared<int>(0);
  ASSERT_TRUE(link_->Send({node_->At(0, 4096)}, keep).ok());
  ASSERT_TRUE(EndsInTime());
  EXPECT_EQ(keep.use_count(), 1);
  EXPECT_EQ(node_.use_count(), 1);
  EXPECT_EQ(Ends(), std::vector<std::string>{"timeout: send 1 has not ended after 50 ms"});
  const auto refused = link_->Send({node_->At(0, 4096)}, nullptr);
  EXPECT_TRUE(absl::IsFailedPrecondition(refused.status())) << refused.status();
  EXPECT_NE(refused.status().message().find("peer link broken: send 1"), std::string::npos);
}

// Nobody comes at all.
TEST_F(PeerLinkTest, WorkerThatNeverComes_BreaksAfterTheTimeout) {
  Open();
  ASSERT_TRUE(EndsInTime());
  ASSERT_EQ(Ends().size(), 1u);
  EXPECT_EQ(Ends()[0].substr(0, 8), "timeout:");
  EXPECT_FALSE(link_->joined());
}

// Idle, a link lasts.
TEST_F(PeerLinkTest, Idle_DoesNotTimeOut) {
  Open();
  Greet();
  clock_.Advance(10 * kTimeout);
  ASSERT_TRUE(link_->Send({node_->At(0, 512)}, nullptr).ok());
  EXPECT_TRUE(Move(*down_, {worker_.At(0, 512)}, 1));
  EXPECT_TRUE(Ends().empty());
}

// A receive whose turn never comes, and one that is running, both hear of the end.
TEST_F(PeerLinkTest, Break_TellsReceivesThatWait) {
  Open();
  Greet();
  const auto heard = std::make_shared<Told>();
  for (uint64_t sequence : {1, 3}) {
    ASSERT_TRUE(link_
                    ->Receive(sequence, {node_->At(0, 4096)},
                              [heard](const absl::Status& status) {
                                const std::lock_guard lock(heard->mutex);
                                heard->ends.push_back(std::string(status.message()));
                              })
                    .ok());
  }
  link_->Break(PeerLinkEnd::kClosed, "the session ended");
  link_->Break(PeerLinkEnd::kCall, "too late to count");
  ASSERT_TRUE(Eventually([&] { return link_->ended(); }));
  const std::lock_guard lock(heard->mutex);
  EXPECT_EQ(heard->ends, (std::vector<std::string>(2, "peer link broken: the session ended")));
  EXPECT_EQ(Ends(), std::vector<std::string>{"closed: the session ended"});
}

// The worker's process is gone in the middle of an operation.
TEST_F(PeerLinkTest, WorkerGone_Breaks) {
  Open();
  Greet();
  ASSERT_TRUE(link_->Send({node_->At(0, kWindow)}, nullptr).ok());
  down_.reset();
  ASSERT_TRUE(Eventually([&] { return link_->ended(); }));
  ASSERT_EQ(Ends().size(), 1u);
  EXPECT_EQ(Ends()[0].substr(0, 7), "failed:");
}

// An operation of another shape than the other side's fails, as NCCL's would hang or overwrite.
TEST_F(PeerLinkTest, OtherShape_Breaks) {
  Open();
  Greet();
  const auto heard = std::make_shared<Told>();
  ASSERT_TRUE(link_
                  ->Receive(1, {node_->At(0, 4096)},
                            [heard](const absl::Status& status) {
                              const std::lock_guard lock(heard->mutex);
                              heard->ends.push_back(status.ok() ? "done" : "failed");
                            })
                  .ok());
  const PeerRegions shorter{worker_.At(0, 2048)};
  ASSERT_TRUE(up_->Start({&shorter}).ok());
  ASSERT_TRUE(up_->Completed().ok());
  ASSERT_TRUE(Eventually([&] { return link_->ended(); }));
  const std::lock_guard lock(heard->mutex);
  EXPECT_EQ(heard->ends, std::vector<std::string>{"failed"});
}

}  // namespace
}  // namespace fq
