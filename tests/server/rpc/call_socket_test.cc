#include "server/rpc/call_socket.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <thread>

#include "server/segment_path.h"
#include "tests/testing/busy_workers.h"
#include "tests/testing/random.h"
#include "tests/testing/running_node.h"
#include "tests/testing/segment_client.h"

namespace fq {
namespace {

namespace wire = ::flashquant::v1;
using Code = absl::StatusCode;

struct Answer {
  uint32_t code = UINT32_MAX;  // no answer
  uint32_t retry_after_ms = 0;
  std::string rest;
};

std::string Packet(uint32_t kind, uint64_t timeout_us, const std::string& message) {
  std::string packet(16, '\0');
  std::memcpy(packet.data(), &kind, 4);
  std::memcpy(packet.data() + 8, &timeout_us, 8);
  return packet + message;
}

void Send(const OwnedFd& peer, const std::string& packet) {
  EXPECT_EQ(send(peer.get(), packet.data(), packet.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(packet.size()));
}

Answer Receive(const OwnedFd& peer) {
  std::string reply(kMaxCallPacketBytes, '\0');
  const ssize_t bytes = recv(peer.get(), reply.data(), reply.size(), 0);
  Answer answer;
  if (bytes < 8) return answer;
  std::memcpy(&answer.code, reply.data(), 4);
  std::memcpy(&answer.retry_after_ms, reply.data() + 4, 4);
  answer.rest = reply.substr(8, static_cast<size_t>(bytes) - 8);
  return answer;
}

class CallSocketTest : public testing::Test {
 protected:
  CallSocketTest() : node_([](Options& o) { o.queue_depth = 1; }), client_(node_) {}

  OwnedFd Connect() const {
    OwnedFd peer = ConnectToSegments(CallSocketPath(node_.options().socket));
    char greeting[9];
    EXPECT_EQ(recv(peer.get(), greeting, sizeof(greeting), 0), 8);
    return peer;
  }
  Answer Ask(const std::string& packet) const {
    const OwnedFd peer = Connect();
    Send(peer, packet);
    return Receive(peer);
  }
  template <typename Request>
  Answer Call(uint32_t kind, const Request& request, uint64_t timeout_us = 60'000'000) const {
    return Ask(Packet(kind, timeout_us, request.SerializeAsString()));
  }
  void ExpectRefused(const Answer& answer, Code code, const std::string& part) const {
    EXPECT_EQ(answer.code, static_cast<uint32_t>(code)) << answer.rest;
    EXPECT_NE(answer.rest.find(part), std::string::npos) << answer.rest;
  }
  wire::StoreRequest OneBlock() const {
    return client_.StoreOf(keys_, TestPages(node_.codec_set(), 1, 1), wire::PROFILE_EXACT);
  }

  RunningNode node_;
  TestClient client_;
  const std::string keys_ = TestKeys("chain", 1);
};

TEST_F(CallSocketTest, StoreLookupRelease_AsOverGrpc) {
  EXPECT_EQ(client_.session().call_socket(), CallSocketPath(node_.options().socket));
  const OwnedFd peer = Connect();
  const auto call = [&](uint32_t kind, const auto& request, auto& reply) {
    Send(peer, Packet(kind, 0, request.SerializeAsString()));
    const Answer answer = Receive(peer);
    EXPECT_EQ(answer.code, 0u) << answer.rest;
    EXPECT_TRUE(reply.ParseFromString(answer.rest));
  };
  wire::StoreResponse stored;
  call(1, OneBlock(), stored);
  EXPECT_EQ(stored.statuses(0), wire::BLOCK_STATUS_OK);
  wire::LookupResponse found, by_grpc;
  call(2, client_.LookupOf(keys_), found);
  ASSERT_TRUE(client_.Lookup(client_.LookupOf(keys_), by_grpc).ok());
  EXPECT_EQ(found.matched_blocks(), 1u);
  EXPECT_EQ(found.stored_bytes(0), by_grpc.stored_bytes(0));
  wire::ReleaseRequest release;
  release.set_session_id(client_.id());
  release.add_lease_ids(found.lease_id());
  wire::ReleaseResponse released;
  call(4, release, released);
  EXPECT_EQ(released.released(), 1u);
  const auto counters = node_.node().metrics().Values();
  EXPECT_EQ(counters.at("fq_requests_total{code=\"OK\",method=\"Store\"}"), 1);
  EXPECT_EQ(counters.at("fq_requests_total{code=\"OK\",method=\"Lookup\"}"), 2);
}

TEST_F(CallSocketTest, Load_OnlyIntoASegment) {
  const wire::LookupResponse found =
      client_.StoreAndLookup(keys_, TestPages(node_.codec_set(), 1, 1), wire::PROFILE_EXACT);
  wire::LoadRequest load = client_.LoadOf(found.lease_id(), 1);
  load.clear_pages();
  ExpectRefused(Call(3, load), Code::kInvalidArgument, "pages: must be set");
  *load.mutable_pages() = TestPlaces(1, 0);
  load.mutable_pages()->set_segment_id(9);
  ExpectRefused(Call(3, load), Code::kInvalidArgument, "pages.segment_id = 9");
}

TEST_F(CallSocketTest, BadPackets_AreRefusedAndTheConnectionGoesOn) {
  const OwnedFd peer = Connect();
  const auto refused = [&](const std::string& packet, Code code, const std::string& part) {
    Send(peer, packet);
    ExpectRefused(Receive(peer), code, part);
  };
  const std::string lookup = client_.LookupOf(keys_).SerializeAsString();
  refused("x", Code::kInvalidArgument, "packet of 1 bytes");
  refused(std::string(kMaxCallPacketBytes + 1, 'x'), Code::kInvalidArgument,
          "packet of 131073 bytes");
  refused(Packet(0, 0, lookup), Code::kInvalidArgument, "method = 0");
  refused(Packet(2, 0, "\xff\xff"), Code::kInvalidArgument, "is no LookupRequest");
  refused(Packet(2, 0, ""), Code::kInvalidArgument, "session_id");
  wire::LookupRequest unknown = client_.LookupOf(keys_);
  unknown.set_session_id(std::string(16, 'n'));
  refused(Packet(2, 0, unknown.SerializeAsString()), Code::kUnauthenticated, "no such session");
  SendPacket(peer, Packet(2, 0, lookup), {peer.get(), peer.get()});  // descriptors are dropped
  EXPECT_EQ(Receive(peer).code, 0u);
}

TEST_F(CallSocketTest, AnotherTenantsSession_IsNotThere) {
  auto space = std::make_shared<SlabSpace>(SlabSpace());
  space->tenant = "somebody else";
  const auto session = *node_.node().sessions().Open(space, space->tenant);
  wire::LookupRequest lookup = client_.LookupOf(keys_);
  lookup.set_session_id(std::string(session->id.begin(), session->id.end()));
  ExpectRefused(Call(2, lookup), Code::kUnauthenticated, "no such session");
}

// Good packets with a few bytes changed, cut or grown, and packets of nothing but chance.
TEST_F(CallSocketTest, RandomPackets_ChangeNothing) {
  constexpr uint64_t kSeed = 20261129;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  const std::string good[] = {
      Packet(2, 1000, client_.LookupOf(keys_).SerializeAsString()),
      Packet(3, 1000, client_.LoadOf(std::string(16, 'l'), 1).SerializeAsString()),
      Packet(1, 1000, OneBlock().SerializeAsString().substr(0, 300))};
  const OwnedFd peer = Connect();
  for (int i = 0; i < 600; ++i) {
    std::string packet = good[random.Below(3)];
    if (random.Below(4) == 0) packet.resize(1 + random.Below(64));
    for (uint32_t n = random.Below(6); n > 0; --n) {
      packet[random.Below(static_cast<uint32_t>(packet.size()))] =
          static_cast<char>(random.Below(256));
    }
    Send(peer, packet);
    EXPECT_NE(Receive(peer).code, UINT32_MAX) << "packet " << i;
  }
  EXPECT_EQ(node_.node().tiers().Stats().host.slabs, 0u);
  EXPECT_EQ(Call(2, client_.LookupOf(keys_)).code, 0u);
}

TEST_F(CallSocketTest, QueueFull_IsResourceExhaustedWithRetryAfter) {
  const BusyWorkers busy(node_.node().workers());
  ASSERT_TRUE(node_.node().workers().Submit([] {}).ok());
  const Answer answer = Call(1, OneBlock());
  ExpectRefused(answer, Code::kResourceExhausted, "queue-depth: 1");
  EXPECT_EQ(answer.retry_after_ms, 20u);
}

TEST_F(CallSocketTest, DeadlinePassedInTheQueue_DoesNoWork) {
  auto busy = std::make_unique<BusyWorkers>(node_.node().workers());
  const OwnedFd peer = Connect();
  Send(peer, Packet(1, 10'000, OneBlock().SerializeAsString()));
  EXPECT_TRUE(Eventually([&] { return node_.node().workers().queued() == 1; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  busy.reset();
  ExpectRefused(Receive(peer), Code::kDeadlineExceeded, "");
  EXPECT_EQ(node_.node().tiers().Stats().host.slabs, 0u);
}

TEST_F(CallSocketTest, PeerHangsUp_CancelsItsCall) {
  auto busy = std::make_unique<BusyWorkers>(node_.node().workers());
  {
    const OwnedFd peer = Connect();
    Send(peer, Packet(1, 0, OneBlock().SerializeAsString()));
    EXPECT_TRUE(Eventually([&] { return node_.node().workers().queued() == 1; }));
  }
  busy.reset();
  EXPECT_TRUE(Eventually([&] {
    return node_.node().metrics().Values()
               ["fq_requests_total{code=\"CANCELLED\",method="
                "\"Store\"}"] == 1;
  }));
}

TEST_F(CallSocketTest, Draining_RefusesStoresAnswersWhatRunsThenHangsUp) {
  auto busy = std::make_unique<BusyWorkers>(node_.node().workers());
  wire::LookupRequest lookup = client_.LookupOf(keys_);
  const OwnedFd running = Connect(), idle = Connect();
  Send(running, Packet(1, 0, OneBlock().SerializeAsString()));
  EXPECT_TRUE(Eventually([&] { return node_.node().workers().queued() == 1; }));
  node_.server().BeginDrain();
  EXPECT_EQ(Call(2, lookup).code, 0u);
  std::thread drain([&] { EXPECT_TRUE(node_.server().FinishDrain()); });
  busy.reset();
  ExpectRefused(Receive(running), Code::kUnavailable, "draining");
  drain.join();
  char byte = 0;
  EXPECT_EQ(recv(idle.get(), &byte, 1, 0), 0);
}

TEST_F(CallSocketTest, OneConnectionTooMany_IsClosedWithoutAGreeting) {
  std::vector<OwnedFd> peers;
  for (size_t i = 0; i < CallSocket::kMaxConnections; ++i) peers.push_back(Connect());
  const OwnedFd refused = ConnectToSegments(CallSocketPath(node_.options().socket));
  char byte = 0;
  EXPECT_EQ(recv(refused.get(), &byte, 1, 0), 0);
  Send(peers.back(), Packet(2, 0, client_.LookupOf(keys_).SerializeAsString()));
  EXPECT_EQ(Receive(peers.back()).code, 0u);
  peers.clear();
  EXPECT_TRUE(Eventually([&] {
    const OwnedFd peer = ConnectToSegments(CallSocketPath(node_.options().socket));
    char greeting[8];
    return recv(peer.get(), greeting, sizeof(greeting), 0) == 8;
  }));
}

TEST_F(CallSocketTest, PeerThatTakesNoReplies_IsHungUpOn) {
  const OwnedFd peer = Connect();
  const std::string packet = Packet(2, 0, client_.LookupOf(keys_).SerializeAsString());
  EXPECT_TRUE(Eventually([&] {  // until both ways are full
    while (send(peer.get(), packet.data(), packet.size(), MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) {
    }
    return errno == EPIPE;
  }));
  EXPECT_EQ(Call(2, client_.LookupOf(keys_)).code, 0u);
}

TEST_F(CallSocketTest, Socket_HasItsModeAndGoesWithTheNode) {
  const std::string path = CallSocketPath(node_.options().socket);
  struct stat info {};
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  node_.Stop();
  EXPECT_NE(stat(path.c_str(), &info), 0);
}

}  // namespace
}  // namespace fq
