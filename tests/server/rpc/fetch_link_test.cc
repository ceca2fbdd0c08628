// Fetches that go GPU to GPU: two nodes with host memory in the GPUs' place and sockets in NCCL's.
#include "server/rpc/fetch_link.h"

#include <gtest/gtest.h>

#include "tests/testing/forwarding_node.h"
#include "tests/testing/host_device.h"
#include "tests/testing/running_node.h"
#include "tests/testing/socket_comm.h"

namespace fq {
namespace {

using Code = grpc::StatusCode;
using Statuses = std::vector<int>;

constexpr auto kOk = wire::BLOCK_STATUS_OK;
constexpr auto kExists = wire::BLOCK_STATUS_EXISTS;
constexpr auto kRefused = wire::BLOCK_STATUS_REFUSED;

std::unique_ptr<Device> Gpu(uint8_t number) {
  return std::make_unique<HostDevice>(uint64_t{256} << 20, number);
}

class FetchLinkTest : public testing::Test {
 protected:
  static constexpr size_t kBlocks = 6;

  // `gpu`: of the node that fetches; the other one has number 1.
  explicit FetchLinkTest(uint8_t gpu = 2, uint64_t link_bytes = 1)
      : there_([](Options& o) { Set(o, 1); }, Gpu(1),
               std::make_unique<SocketTransport>(folder_.path())),
        here_(
            [&](Options& o) {
              Set(o, link_bytes);
              o.fetch_from = {between_.address()};
            },
            Gpu(gpu), std::make_unique<SocketTransport>(folder_.path())) {}

  static void Set(Options& o, uint64_t link_bytes) {
    o.peer_window_bytes = 96 << 20;
    o.peer_timeout_ms = 1'000;
    o.fetch_link_bytes = link_bytes;
  }

  void StoreThere(wire::Profile profile) {
    TestClient client(there_);
    client.StoreAndLookup(keys_, pages_, profile);
    client.End();
    EXPECT_TRUE(Eventually([&] { return there_.node().tiers().Stats().host.pinned_slabs == 0; }));
  }

  void Fetch() {
    grpc::ClientContext context;
    reply_.Clear();
    const grpc::Status status =
        client_.stub().Fetch(&context, client_.FetchOf(keys_, between_.address()), &reply_);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(reply_.stopped(), "");
  }
  Statuses Got() const { return {reply_.statuses().begin(), reply_.statuses().end()}; }

  double Counted(const std::string& name) { return here_.node().metrics().Values()[name]; }
  double Bytes(const std::string& transport) {
    return Counted("fq_fetched_bytes_total{transport=\"" + transport + "\"}");
  }
  StoreStats OnGpu() { return here_.node().tiers().Stats().device; }

  TempFolder folder_;  // of sockets
  RunningNode there_;
  ForwardingNode between_{there_};
  RunningNode here_;
  TestClient client_{here_};
  const std::string keys_ = TestKeys("a", kBlocks);
  const std::string pages_ = TestPages(there_.codec_set(), kBlocks, 1);
  wire::FetchResponse reply_;
};

TEST_F(FetchLinkTest, EveryProfile_GoesGpuToGpuAndLoadsAsThere) {
  std::vector<std::pair<std::string, std::string>> expected;
  for (wire::Profile profile : {wire::PROFILE_EXACT, wire::PROFILE_NEAR_LOSSLESS,
                                wire::PROFILE_COMPACT, wire::PROFILE_UNIVERSAL}) {
    TestClient client(there_);
    const std::string keys = TestKeys(wire::Profile_Name(profile), kBlocks);
    client.StoreAndLookup(keys, pages_, profile);
    expected.emplace_back(keys, client.LoadAll(keys));
    grpc::ClientContext context;
    ASSERT_TRUE(
        client_.stub().Fetch(&context, client_.FetchOf(keys, between_.address()), &reply_).ok());
    EXPECT_EQ(Got(), Statuses(kBlocks, kOk)) << reply_.stopped();
    reply_.Clear();
    EXPECT_TRUE(Eventually([&] {  // its window is free
      return there_.node().metrics().Values()["fq_peer_links"] == 0;
    }));
  }
  EXPECT_EQ(Bytes("grpc"), 0);
  EXPECT_GT(Bytes("nccl"), kBlocks * kTestBlockBytes);
  EXPECT_EQ(OnGpu().slabs, 4 * kBlocks);
  EXPECT_EQ(OnGpu().reserved_slabs, 0u);
  EXPECT_TRUE(Eventually([&] { return Counted("fq_peer_links") == 0; }));
  between_.Die();
  there_.Stop();
  for (const auto& [keys, pages] : expected) EXPECT_EQ(client_.LoadAll(keys), pages);
}

TEST_F(FetchLinkTest, OnlyWhatIsMissing_IsSent) {
  StoreThere(wire::PROFILE_EXACT);
  client_.StoreAndLookup(keys_.substr(0, 2 * 32), pages_.substr(0, 2 * kTestBlockBytes),
                         wire::PROFILE_EXACT);
  Fetch();
  EXPECT_EQ(Got(), (Statuses{kExists, kExists, kOk, kOk, kOk, kOk}));
  EXPECT_EQ(client_.LoadAll(keys_), pages_);
}

TEST_F(FetchLinkTest, OtherSumThanWasSent_IsRefusedAndTheOthersAreKept) {
  StoreThere(wire::PROFILE_NEAR_LOSSLESS);
  between_.on_load = [](grpc::ServerContext&, wire::LoadResponse& reply) {
    reply.set_peer_sums(2 * 3 + 1, reply.peer_sums(2 * 3 + 1) + 1);  // refinement of block 3
    return grpc::Status::OK;
  };
  Fetch();
  EXPECT_EQ(Got(), (Statuses{kOk, kOk, kOk, kRefused, kOk, kOk}));
  EXPECT_EQ(OnGpu().slabs, kBlocks - 1);
  EXPECT_EQ(OnGpu().reserved_slabs, 0u);
}

// Sums say that bytes came as they were sent, not that they are right: the GPU checks that.
TEST_F(FetchLinkTest, SlabThatIsBadThere_IsRefusedHere) {
  StoreThere(wire::PROFILE_EXACT);
  SlabKey key{1, {}};  // in the first space of that node
  std::memcpy(key.block.data(), &keys_[32 * 4], 32);
  {
    const Pin pin = there_.node().tiers().Peek(key);
    ASSERT_TRUE(pin && pin.on_host());
    *const_cast<std::byte*>(pin.primary().data() + pin.primary().size() / 2) ^= std::byte{1};
  }
  Fetch();
  EXPECT_EQ(Got(), (Statuses{kOk, kOk, kOk, kOk, kRefused, kOk}));
  EXPECT_GT(Bytes("nccl"), 0);
}

TEST_F(FetchLinkTest, NoLink_GoesOverGrpc) {
  StoreThere(wire::PROFILE_EXACT);
  between_.on_link = [](grpc::ServerContext&, wire::OpenPeerLinkResponse&) {
    return grpc::Status(Code::RESOURCE_EXHAUSTED, "max-peer-links");
  };
  Fetch();
  EXPECT_EQ(Got(), Statuses(kBlocks, kOk));
  EXPECT_EQ(Bytes("nccl"), 0);
  EXPECT_GT(Bytes("grpc"), 0);
}

TEST_F(FetchLinkTest, BlocksOfOtherSizes_AreNotTakenAndComeOverGrpc) {
  StoreThere(wire::PROFILE_EXACT);
  between_.on_load = [](grpc::ServerContext&, wire::LoadResponse& reply) {
    if (reply.peer_sequence() != 0) reply.set_sizes(2, reply.sizes(2) + 64);
    return grpc::Status::OK;
  };
  Fetch();
  EXPECT_EQ(Got(), Statuses(kBlocks, kOk));
  EXPECT_EQ(Bytes("nccl"), 0);
  EXPECT_EQ(OnGpu().slabs + OnGpu().reserved_slabs, 0u);
  EXPECT_EQ(client_.LoadAll(keys_), pages_);
}

TEST_F(FetchLinkTest, TransferThatNeverEnds_BreaksTheLinkAndComesOverGrpc) {
  StoreThere(wire::PROFILE_EXACT);
  between_.on_load = [](grpc::ServerContext&, wire::LoadResponse& reply) {
    if (reply.peer_sequence() != 0) reply.set_peer_sequence(reply.peer_sequence() + 1);
    return grpc::Status::OK;
  };
  Fetch();
  EXPECT_EQ(Got(), Statuses(kBlocks, kOk));
  EXPECT_EQ(Bytes("nccl"), 0);
  EXPECT_EQ(OnGpu().slabs + OnGpu().reserved_slabs, 0u);
  EXPECT_EQ(Counted("fq_peer_links_broken_total{reason=\"timeout\"}"), 1);
  EXPECT_EQ(client_.LoadAll(keys_), pages_);
}

TEST_F(FetchLinkTest, DeadlineOfTheCaller_EndsTheTransferAndFreesItsRoom) {
  StoreThere(wire::PROFILE_EXACT);
  between_.on_load = [](grpc::ServerContext&, wire::LoadResponse& reply) {
    if (reply.peer_sequence() != 0) reply.set_peer_sequence(reply.peer_sequence() + 1);
    return grpc::Status::OK;
  };
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(500));
  const auto request = client_.FetchOf(keys_, between_.address());
  client_.stub().Fetch(&context, request, &reply_);  // in time, or just not: not tested
  EXPECT_TRUE(Eventually([&] { return Counted("fq_running_calls") == 0; }));
  EXPECT_EQ(OnGpu().slabs + OnGpu().reserved_slabs, 0u);
  EXPECT_TRUE(Eventually([&] { return Counted("fq_peer_links") == 0; }));
}

class SameGpuTest : public FetchLinkTest {
 protected:
  SameGpuTest() : FetchLinkTest(1) {}
};

TEST_F(SameGpuTest, NodesOnOneGpu_UseGrpc) {
  StoreThere(wire::PROFILE_EXACT);
  Fetch();
  EXPECT_EQ(Got(), Statuses(kBlocks, kOk));
  EXPECT_EQ(Bytes("nccl"), 0);
}

class SmallFetchTest : public FetchLinkTest {
 protected:
  SmallFetchTest() : FetchLinkTest(2, uint64_t{1} << 30) {}
};

TEST_F(SmallFetchTest, LessThanALinkIsWorth_GoesOverGrpc) {
  StoreThere(wire::PROFILE_EXACT);
  Fetch();
  EXPECT_EQ(Got(), Statuses(kBlocks, kOk));
  EXPECT_EQ(Bytes("nccl"), 0);
}

}  // namespace
}  // namespace fq
