// Peer links over the wire: a node with host memory in the GPU's place and sockets in NCCL's, and
// workers that send and receive as they are told.
#include "server/rpc/peer_calls.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <thread>

#include "server/rpc/call_packet.h"
#include "server/segment_path.h"
#include "tests/testing/host_device.h"
#include "tests/testing/peer_worker.h"
#include "tests/testing/running_node.h"
#include "tests/testing/segment_client.h"
#include "tests/testing/socket_comm.h"

namespace fq {
namespace {

constexpr uint64_t kRow = kTestHeads * kTestHeadSize * 2;  // bytes of a token's heads
constexpr uint64_t kBlock = kTestBlockBytes;
constexpr uint64_t kBlocks = 16, kWindow = kBlocks * kBlock;
const std::string kWorkerUuid = "sixteen bytes ok";

wire::Pages PlacesAt(uint32_t segment, const std::vector<uint64_t>& blocks) {
  wire::Pages pages;
  pages.set_segment_id(segment);
  wire::PageLayout& layout = *pages.mutable_layout();
  layout.set_tokens_per_chunk(64);
  layout.set_head_stride(kTestHeadSize * 2);
  layout.set_k_token_stride(kRow);
  layout.set_k_channel_stride(2);
  layout.set_v_offset(64 * kRow);
  layout.set_v_token_stride(kRow);
  layout.set_v_channel_stride(2);
  for (uint64_t block : blocks) pages.add_places()->add_chunk_offsets(block * kBlock);
  return pages;
}

// A client with a link: what a worker on another GPU does.
class LinkedClient {
 public:
  explicit LinkedClient(RunningNode& node) : client(node), window(kWindow) {
    for (uint64_t i = 0; i < kWindow; ++i)
      *window.host(i) = static_cast<std::byte>(i * 2654435761u >> 13);
  }

  wire::OpenPeerLinkRequest OpenRequest() const {
    wire::OpenPeerLinkRequest request;
    request.set_session_id(client.id());
    request.set_device_uuid(kWorkerUuid);
    request.set_window_bytes(kWindow);
    return request;
  }
  grpc::Status Open(const wire::OpenPeerLinkRequest& request) {
    grpc::ClientContext context;
    return client.stub().OpenPeerLink(&context, request, &opened);
  }
  void Link(uint32_t timeout_ms = 0) {
    wire::OpenPeerLinkRequest request = OpenRequest();
    request.set_timeout_ms(timeout_ms);
    const grpc::Status status = Open(request);
    ASSERT_TRUE(status.ok()) << status.error_message();
    worker = std::make_unique<PeerWorker>(IdOf(opened.down_id()), IdOf(opened.up_id()));
    ASSERT_TRUE(worker->Greet(window));
  }
  grpc::Status Close(uint32_t segment) {
    grpc::ClientContext context;
    wire::ClosePeerLinkRequest request;
    request.set_session_id(client.id());
    request.set_segment_id(segment);
    wire::ClosePeerLinkResponse reply;
    return client.stub().ClosePeerLink(&context, request, &reply);
  }

  PeerRegion Region(uint64_t block, uint64_t blocks = 1) const {
    return window.At(block * kBlock, blocks * kBlock);
  }
  // Of window blocks.
  wire::StoreRequest StoreOf(const std::string& keys, const std::vector<uint64_t>& blocks,
                             uint64_t sequence) const {
    wire::StoreRequest request = client.StoreOf(keys, "", wire::PROFILE_EXACT);
    *request.mutable_pages() = PlacesAt(opened.segment_id(), blocks);
    request.set_peer_sequence(sequence);
    for (uint64_t block : blocks) request.add_peer_sums(window.Sum(block * kBlock, kBlock));
    return request;
  }
  wire::LoadRequest LoadOf(const std::string& lease, const std::vector<uint64_t>& blocks) const {
    wire::LoadRequest request = client.LoadOf(lease, static_cast<uint32_t>(blocks.size()));
    *request.mutable_pages() = PlacesAt(opened.segment_id(), blocks);
    return request;
  }
  // Stores window blocks 0.. as a chain and leases it.
  std::string StoreChain(const std::string& keys, uint64_t sequence) {
    std::vector<uint64_t> blocks(keys.size() / 32);
    for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = i;
    worker->StartSend({Region(0, blocks.size())});
    std::atomic<bool> sent{false};
    std::thread sender([&] { sent = worker->AwaitSends(); });
    wire::StoreResponse stored;
    const grpc::Status status = client.Store(StoreOf(keys, blocks, sequence), stored);
    sender.join();
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_TRUE(sent);
    for (int one : stored.statuses()) EXPECT_EQ(one, wire::BLOCK_STATUS_OK);
    return Lease(keys);
  }
  std::string Lease(const std::string& keys) {
    wire::LookupResponse found;
    EXPECT_TRUE(client.Lookup(client.LookupOf(keys), found).ok());
    EXPECT_EQ(found.matched_blocks(), keys.size() / 32);
    return found.lease_id();
  }

  static PeerId IdOf(const std::string& bytes) {
    PeerId id{};
    EXPECT_EQ(bytes.size(), id.size());
    std::memcpy(id.data(), bytes.data(), id.size());
    return id;
  }

  TestClient client;
  PeerWindow window;
  wire::OpenPeerLinkResponse opened;
  std::unique_ptr<PeerWorker> worker;
};

class PeerCallsTest : public testing::Test {
 protected:
  explicit PeerCallsTest(const std::function<void(Options&)>& change = [](Options&) {})
      : device_(new HostDevice()),
        node_(
            [&](Options& options) {
              options.peer_timeout_ms = 20'000;
              options.peer_window_bytes = 96 << 20;
              change(options);
            },
            std::unique_ptr<Device>(device_), std::make_unique<SocketTransport>(folder_.path())) {}

  double Metric(const std::string& name) { return node_.node().metrics().Values()[name]; }
  double PeerLinkCount() { return Metric("fq_peer_links"); }

  TempFolder folder_;
  HostDevice* const device_;  // the node's
  RunningNode node_;
  const std::string keys_ = TestKeys("chain", 4);
};

void ExpectRefused(const grpc::Status& status, grpc::StatusCode code, const std::string& part) {
  EXPECT_EQ(status.error_code(), code) << status.error_message();
  EXPECT_NE(status.error_message().find(part), std::string::npos) << status.error_message();
}

TEST_F(PeerCallsTest, SessionSaysWhatThereIs) {
  const LinkedClient a(node_);
  const wire::PeerTransport& peers = a.client.session().peer_transport();
  EXPECT_EQ(peers.nccl_version(), "2.29.7");
  EXPECT_EQ(peers.device_uuid(),
            std::string(device_->info().uuid.begin(), device_->info().uuid.end()));
  EXPECT_EQ(peers.max_window_bytes(), uint64_t{96} << 20);
  EXPECT_EQ(peers.max_timeout_ms(), 20'000u);
  RunningNode without;
  EXPECT_FALSE(TestClient(without).session().has_peer_transport());
  LinkedClient refused(without);
  ExpectRefused(refused.Open(refused.OpenRequest()), grpc::FAILED_PRECONDITION, "--nccl");
}

// Stored out of the worker's window and loaded into other places of it: the same bytes, sums that
// agree, regions that touch in one piece.
TEST_F(PeerCallsTest, StoredAndLoaded_TheSameBytes) {
  LinkedClient a(node_);
  a.Link();
  EXPECT_EQ(a.opened.max_ctas(), 24u);
  EXPECT_EQ(a.opened.timeout_ms(), 20'000u);
  const std::string lease = a.StoreChain(keys_, 1);
  wire::LoadResponse loaded;
  const grpc::Status status = a.client.Load(a.LoadOf(lease, {8, 9, 12, 11}), loaded);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(loaded.peer_sequence(), 1u);
  ASSERT_EQ(loaded.peer_sums_size(), 4);
  ASSERT_TRUE(a.worker->Receive({a.Region(8, 2), a.Region(12), a.Region(11)}));
  const std::vector<uint64_t> places = {8, 9, 12, 11};
  for (uint64_t i = 0; i < 4; ++i) {
    EXPECT_EQ(a.window.Bytes(places[i] * kBlock, kBlock), a.window.Bytes(i * kBlock, kBlock));
    EXPECT_EQ(loaded.peer_sums(static_cast<int>(i)), a.window.Sum(i * kBlock, kBlock));
  }
  EXPECT_EQ(Metric("fq_transport_blocks_total{operation=\"store\",transport=\"nccl\"}"), 4);
  EXPECT_EQ(Metric("fq_transport_blocks_total{operation=\"load\",transport=\"nccl\"}"), 4);
  EXPECT_TRUE(
      Eventually([&] { return Metric("fq_peer_bytes_total{direction=\"send\"}") == 4 * kBlock; }));
  EXPECT_EQ(Metric("fq_peer_bytes_total{direction=\"receive\"}"), 4 * kBlock);
  EXPECT_EQ(PeerLinkCount(), 1);
}

// A slab that only the host tier has goes up and over, and stays.
TEST_F(PeerCallsTest, SlabOfTheHostTier_IsLoaded) {
  LinkedClient a(node_);
  a.Link();
  const std::string pages = TestPages(node_.codec_set(), 2, 5);
  const wire::LookupResponse found =
      a.client.StoreAndLookup(TestKeys("host", 2), pages, wire::PROFILE_EXACT);
  wire::LoadResponse loaded;
  ASSERT_TRUE(a.client.Load(a.LoadOf(found.lease_id(), {3, 4}), loaded).ok());
  ASSERT_TRUE(a.worker->Receive({a.Region(3, 2)}));
  EXPECT_EQ(loaded.peer_sums(1), a.window.Sum(4 * kBlock, kBlock));
  wire::LoadResponse inlined;
  ASSERT_TRUE(a.client.Load(a.client.LoadOf(found.lease_id(), 2), inlined).ok());
  uint16_t over_link, in_message;  // layer 0, K, token 1, head 1, channel 0
  std::memcpy(&over_link, a.window.host(3 * kBlock + kRow + kTestHeadSize * 2), 2);
  std::memcpy(&in_message, &inlined.payload()[(2 * 64 + 1) * kTestHeadSize * 2], 2);
  EXPECT_EQ(over_link, in_message);
}

// Encoded, the extents are those of an inline load; a refinement lies behind its primary extent.
TEST_F(PeerCallsTest, Encoded_BringsTheExtents) {
  LinkedClient a(node_);
  a.Link();
  for (const bool on_device : {false, true}) {
    const std::string keys = TestKeys(on_device ? "device" : "host", 3);
    std::string lease;
    if (on_device) {
      a.worker->StartSend({a.Region(0, 3)});
      std::thread sender([&] { EXPECT_TRUE(a.worker->AwaitSends()); });
      wire::StoreRequest store = a.StoreOf(keys, {0, 1, 2}, 1);
      store.set_profile(wire::PROFILE_NEAR_LOSSLESS);
      wire::StoreResponse stored;
      EXPECT_TRUE(a.client.Store(store, stored).ok());
      sender.join();
      lease = a.Lease(keys);
    } else {
      lease =
          a.client
              .StoreAndLookup(keys, TestPages(node_.codec_set(), 3, 9), wire::PROFILE_NEAR_LOSSLESS)
              .lease_id();
    }
    wire::LoadRequest load = a.LoadOf(lease, {5, 7, 6});
    load.set_encoded(true);
    load.mutable_pages()->clear_layout();
    wire::LoadResponse loaded;
    const grpc::Status status = a.client.Load(load, loaded);
    ASSERT_TRUE(status.ok()) << status.error_message();
    PeerRegions regions;
    std::string extents;
    const std::vector<uint64_t> places = {5, 7, 6};
    for (int i = 0; i < 3; ++i) {
      const uint64_t begin = places[i] * kBlock, second = begin + (loaded.sizes(i) + 63) / 64 * 64;
      regions.push_back(a.window.At(begin, loaded.sizes(i)));
      regions.push_back(a.window.At(second, loaded.refinement_sizes(i)));
    }
    ASSERT_TRUE(a.worker->Receive(regions));
    for (size_t i = 0; i < regions.size(); ++i) {
      const auto offset = static_cast<uint64_t>(regions[i].data - a.window.At(0, 0).data);
      extents += a.window.Bytes(offset, regions[i].bytes);
      EXPECT_EQ(loaded.peer_sums(static_cast<int>(i)), a.window.Sum(offset, regions[i].bytes));
    }
    wire::LoadRequest inline_load = a.client.LoadOf(lease, 3);
    inline_load.set_encoded(true);
    wire::LoadResponse inlined;
    ASSERT_TRUE(a.client.Load(inline_load, inlined).ok());
    EXPECT_EQ(extents, inlined.payload());
  }
}

// Bytes that changed on their way are neither published nor in the way of the others.
TEST_F(PeerCallsTest, DamagedBlocks_AreNotPublished) {
  LinkedClient a(node_);
  a.Link();
  wire::StoreRequest store = a.StoreOf(keys_, {0, 1, 2, 3}, 1);
  *a.window.host(2 * kBlock + 12345) ^= std::byte{1};  // what travels differs from what was summed
  a.worker->StartSend({a.Region(0, 4)});
  std::thread sender([&] { EXPECT_TRUE(a.worker->AwaitSends()); });
  wire::StoreResponse stored;
  const grpc::Status status = a.client.Store(store, stored);
  sender.join();
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(stored.statuses(1), wire::BLOCK_STATUS_OK);
  EXPECT_EQ(stored.statuses(2), wire::BLOCK_STATUS_MISS);
  EXPECT_EQ(stored.statuses(3), wire::BLOCK_STATUS_OK);
  wire::LookupResponse found;
  ASSERT_TRUE(a.client.Lookup(a.client.LookupOf(keys_), found).ok());
  EXPECT_EQ(found.matched_blocks(), 2u);
  EXPECT_EQ(Metric("fq_blocks_stored_total{profile=\"exact\",result=\"damaged\"}"), 1);
}

// The same over the call socket, and while it waits for its pages it holds no worker.
TEST_F(PeerCallsTest, StoreOverTheCallSocket_WaitsWithoutAWorker) {
  LinkedClient a(node_);
  a.Link();
  std::vector<std::thread> stores;
  for (uint64_t i = 0; i < 4; ++i) {
    stores.emplace_back([&, i] {
      const wire::StoreRequest store =
          a.StoreOf(TestKeys("call" + std::to_string(i), 1), {i}, 1 + i);
      const OwnedFd peer = ConnectToSegments(CallSocketPath(node_.options().socket));
      char greeting[9];
      EXPECT_EQ(recv(peer.get(), greeting, sizeof(greeting), 0), 8);
      std::string packet(16, '\0');
      packet[0] = static_cast<char>(CallKind::kStore);
      packet += store.SerializeAsString();
      EXPECT_EQ(send(peer.get(), packet.data(), packet.size(), 0),
                static_cast<ssize_t>(packet.size()));
      std::string reply(4096, '\0');
      const ssize_t bytes = recv(peer.get(), reply.data(), reply.size(), 0);
      ASSERT_GE(bytes, 8);
      EXPECT_EQ(reply.substr(0, 4), std::string(4, '\0'));
      wire::StoreResponse stored;
      EXPECT_TRUE(stored.ParseFromArray(reply.data() + 8, static_cast<int>(bytes) - 8));
      EXPECT_EQ(stored.statuses(0), wire::BLOCK_STATUS_OK);
    });
  }
  EXPECT_TRUE(Eventually([&] { return node_.node().Sample().running_calls == 4; }));
  const std::string pages = TestPages(node_.codec_set(), 1, 3);  // two workers, none is taken
  a.client.StoreAndLookup(TestKeys("inline", 1), pages, wire::PROFILE_EXACT);
  for (uint64_t i = 0; i < 4; ++i) a.worker->StartSend({a.Region(i)});
  EXPECT_TRUE(a.worker->AwaitSends());
  for (std::thread& thread : stores) thread.join();
}

// Nothing to deliver: no operation, and the next one has the next number.
TEST_F(PeerCallsTest, NothingToDeliver_SendsNothing) {
  LinkedClient a(node_);
  a.Link();
  a.worker->StartSend({a.Region(0, 1)});
  std::thread sender([&] { EXPECT_TRUE(a.worker->AwaitSends()); });
  const std::string keys = TestKeys("universal", 1);
  wire::StoreRequest store = a.StoreOf(keys, {0}, 1);
  store.set_profile(wire::PROFILE_UNIVERSAL);
  wire::StoreResponse stored;
  ASSERT_TRUE(a.client.Store(store, stored).ok());
  sender.join();
  const std::string lease = a.Lease(keys);
  wire::LoadRequest load = a.LoadOf(lease, {1});
  load.set_min_profile(wire::PROFILE_EXACT);
  wire::LoadResponse loaded;
  ASSERT_TRUE(a.client.Load(load, loaded).ok());
  EXPECT_EQ(loaded.statuses(0), wire::BLOCK_STATUS_BELOW_FLOOR);
  EXPECT_EQ(loaded.peer_sequence(), 0u);
  load.clear_min_profile();
  wire::LoadResponse again;
  ASSERT_TRUE(a.client.Load(load, again).ok());
  EXPECT_EQ(again.peer_sequence(), 1u);
}

// A worker that neither sends nor receives holds no thread of the node: more of its calls than
// there are threads wait, and another worker's go on.
TEST_F(PeerCallsTest, StalledWorker_HoldsUpNobodyElse) {
  LinkedClient stalled(node_), other(node_);
  stalled.Link();
  other.Link();
  const std::string lease = stalled.StoreChain(keys_, 1);
  for (int i = 0; i < 20; ++i) {
    wire::LoadResponse loaded;
    ASSERT_TRUE(stalled.client.Load(stalled.LoadOf(lease, {8, 9, 10, 11}), loaded).ok());
  }
  std::vector<std::thread> waiting;
  for (uint64_t i = 0; i < 8; ++i) {
    waiting.emplace_back([&, i] {
      wire::StoreResponse stored;
      ExpectRefused(
          stalled.client.Store(
              stalled.StoreOf(TestKeys("stalled" + std::to_string(i), 1), {i}, 2 + i), stored),
          grpc::FAILED_PRECONDITION, "peer link broken: it was closed");
    });
  }
  EXPECT_TRUE(Eventually([&] { return node_.node().Sample().running_calls == 8; }));
  const std::string others = other.StoreChain(TestKeys("other", 4), 1);
  wire::LoadResponse loaded;
  ASSERT_TRUE(other.client.Load(other.LoadOf(others, {8, 9, 10, 11}), loaded).ok());
  EXPECT_TRUE(other.worker->Receive({other.Region(8, 4)}));
  EXPECT_EQ(node_.node().Sample().running_calls, 8);
  EXPECT_TRUE(stalled.Close(stalled.opened.segment_id()).ok());
  for (std::thread& thread : waiting) thread.join();
  ExpectRefused(stalled.Close(stalled.opened.segment_id()), grpc::NOT_FOUND, "segment_id = 1");
  EXPECT_TRUE(Eventually([&] { return PeerLinkCount() == 1; }));
}

// The worker does not send what it has announced: the call fails in the link's time, nothing is
// published, later calls are told why, and another link can be opened.
TEST_F(PeerCallsTest, NoBytes_BreaksTheLinkAfterItsTimeout) {
  LinkedClient a(node_);
  a.Link(100);
  EXPECT_EQ(a.opened.timeout_ms(), 100u);
  std::thread time([&] {
    EXPECT_TRUE(Eventually([&] {
      node_.clock().Advance(Milliseconds(node_.node().Sample().running_calls == 1 ? 100 : 0));
      return Metric("fq_peer_links_broken_total{reason=\"timeout\"}") == 1;
    }));
  });
  wire::StoreResponse stored;
  const std::string why = "peer link broken: receive 1 has not ended after 100 ms";
  ExpectRefused(a.client.Store(a.StoreOf(keys_, {0, 1, 2, 3}, 1), stored),
                grpc::FAILED_PRECONDITION, why);
  time.join();
  ExpectRefused(a.client.Store(a.StoreOf(keys_, {0, 1, 2, 3}, 2), stored),
                grpc::FAILED_PRECONDITION, why);
  wire::LookupResponse found;
  ASSERT_TRUE(a.client.Lookup(a.client.LookupOf(keys_), found).ok());
  EXPECT_EQ(found.matched_blocks(), 0u);
  EXPECT_EQ(Metric("fq_peer_links_broken_total{reason=\"timeout\"}"), 1);
  EXPECT_TRUE(a.Close(a.opened.segment_id()).ok());
  a.Link();
  a.StoreChain(keys_, 1);
}

// The worker's end goes in the middle of a transfer.
TEST_F(PeerCallsTest, WorkerGone_NothingIsPublished) {
  LinkedClient a(node_);
  a.Link();
  std::thread leaves([&] {
    EXPECT_TRUE(Eventually([&] { return node_.node().Sample().running_calls == 1; }));
    a.worker->Leave();
  });
  wire::StoreResponse stored;
  ExpectRefused(a.client.Store(a.StoreOf(keys_, {0, 1, 2, 3}, 1), stored),
                grpc::FAILED_PRECONDITION, "peer link broken: socket");
  leaves.join();
  EXPECT_EQ(Metric("fq_store_reserved_blocks"), 0);
  EXPECT_EQ(Metric("fq_device_blocks"), 0);
  EXPECT_EQ(Metric("fq_peer_links_broken_total{reason=\"failed\"}"), 1);
}

// The session's end ends its links at once, with operations under way, and frees their memory.
TEST_F(PeerCallsTest, SessionEnds_LinksAndMemoryGo) {
  const uint64_t free = device_->free_bytes();
  LinkedClient a(node_);
  a.Link();
  const std::string lease = a.StoreChain(keys_, 1);
  wire::LoadResponse loaded;
  ASSERT_TRUE(a.client.Load(a.LoadOf(lease, {8, 9, 10, 11}), loaded).ok());
  EXPECT_LT(device_->free_bytes(), free);
  a.client.End();
  EXPECT_TRUE(Eventually([&] { return PeerLinkCount() == 0 && device_->free_bytes() == free; }));
  EXPECT_FALSE(a.worker->Receive({a.Region(8, 4)}));
  EXPECT_EQ(Metric("fq_peer_links_broken_total{reason=\"failed\"}"), 0);
}

// A Store that is refused ends the link: the worker has sent what nobody will receive.
TEST_F(PeerCallsTest, RefusedStore_EndsTheLink) {
  const std::vector<std::pair<std::function<void(wire::StoreRequest&)>, std::string>> cases = {
      {[](auto& r) { r.mutable_peer_sums()->RemoveLast(); }, "peer_sums has 3: must have one for"},
      {[](auto& r) { r.set_peer_sequence(999); },
       "peer_sequence = 999: must be one of the 128 from 1"},
      {[](auto& r) { r.mutable_pages()->mutable_layout()->set_v_offset(0); },
       "pages.layout.v_offset = 0: must be 16384 over a peer link"},
      {[](auto& r) { r.mutable_pages()->mutable_layout()->set_layer_stride(32768); },
       "pages.layout.layer_stride = 32768: must be 0 over a peer link"},
      {[](auto& r) { r.mutable_pages()->mutable_layout()->set_tokens_per_chunk(32); },
       "pages.layout.tokens_per_chunk = 32: must be 64"},
      {[](auto& r) { r.mutable_pages()->mutable_places(3)->set_chunk_offsets(0, 128); },
       "pages.places[3].chunk_offsets[0] = 128"},
      {[](auto& r) {
         r.mutable_pages()->mutable_places(3)->set_chunk_offsets(0, kWindow - kBlock + 256);
       },
       "pages.places[3].chunk_offsets[0]"},
      {[](auto& r) { r.mutable_pages()->clear_layout(); }, "pages.layout: required"},
      {[](auto& r) { r.set_payload("x"); }, "payload has 1 bytes"},
  };
  for (const auto& [spoil, part] : cases) {
    LinkedClient a(node_);
    a.Link();
    wire::StoreRequest store = a.StoreOf(keys_, {0, 1, 2, 15}, 1);
    spoil(store);
    wire::StoreResponse stored;
    ExpectRefused(a.client.Store(store, stored), grpc::INVALID_ARGUMENT, part);
    ExpectRefused(a.client.Store(a.StoreOf(keys_, {0, 1, 2, 15}, 1), stored),
                  grpc::FAILED_PRECONDITION, "peer link broken: " + part.substr(0, 9));
  }
  EXPECT_TRUE(Eventually(
      [&] { return Metric("fq_peer_links_broken_total{reason=\"call\"}") == cases.size(); }));
}

TEST_F(PeerCallsTest, CallsThatMixKinds_AreNamed) {
  LinkedClient a(node_);
  a.Link();
  wire::StoreResponse stored;
  wire::StoreRequest store = a.StoreOf(keys_, {0, 1, 2, 3}, 1);
  store.mutable_pages()->set_segment_id(7);
  ExpectRefused(a.client.Store(store, stored), grpc::INVALID_ARGUMENT,
                "peer_sequence = 1: pages.segment_id = 7 is no peer link");
  ExpectRefused(a.client.Store(a.StoreOf(keys_, {0, 1, 2, 3}, 0), stored), grpc::INVALID_ARGUMENT,
                "peer_sequence = 0: must be 1 or more over a peer link");
  const std::string lease = a.StoreChain(keys_, 1);
  wire::LoadResponse loaded;
  wire::LoadRequest load = a.LoadOf(lease, {8, 9, 10, 11});
  load.set_encoded(true);
  ExpectRefused(a.client.Load(load, loaded), grpc::INVALID_ARGUMENT, "pages.layout must be unset");
  load.mutable_pages()->clear_layout();
  load.mutable_pages()->mutable_places(3)->set_chunk_offsets(0, kWindow - 256);
  ExpectRefused(a.client.Load(load, loaded), grpc::INVALID_ARGUMENT,
                "do not fit there, the window has " + std::to_string(kWindow));
  load.mutable_pages()->mutable_places(3)->set_chunk_offsets(0, kWindow);
  ExpectRefused(a.client.Load(load, loaded), grpc::INVALID_ARGUMENT,
                "pages.places[3].chunk_offsets[0] = " + std::to_string(kWindow));
  load.mutable_pages()->set_segment_id(7);
  ExpectRefused(a.client.Load(load, loaded), grpc::INVALID_ARGUMENT, "pages.segment_id is 7");
  EXPECT_EQ(PeerLinkCount(), 1);  // a Load that is refused has taken nothing
}

TEST_F(PeerCallsTest, OpenWithBadFields_IsRefusedWithBothValues) {
  const std::vector<std::pair<std::function<void(wire::OpenPeerLinkRequest&)>, std::string>> cases =
      {
          {[](auto& r) { r.set_device_uuid("short"); }, "device_uuid has 5 bytes"},
          {[](auto& r) { r.set_window_bytes(kBlock + 8); }, "window_bytes = "},
          {[](auto& r) { r.set_window_bytes(kBlock - 256); }, "hold a block, which has"},
          {[](auto& r) { r.set_timeout_ms(20'001); }, "timeout_ms = 20001"},
      };
  LinkedClient a(node_);
  for (const auto& [spoil, part] : cases) {
    wire::OpenPeerLinkRequest request = a.OpenRequest();
    spoil(request);
    ExpectRefused(a.Open(request), grpc::INVALID_ARGUMENT, part);
  }
  wire::OpenPeerLinkRequest same = a.OpenRequest();
  same.set_device_uuid(a.client.session().peer_transport().device_uuid());
  ExpectRefused(a.Open(same), grpc::FAILED_PRECONDITION, "the node's GPU is");
  wire::OpenPeerLinkRequest stranger = a.OpenRequest();
  stranger.set_session_id(std::string(16, 'x'));
  EXPECT_EQ(a.Open(stranger).error_code(), grpc::UNAUTHENTICATED);
  EXPECT_EQ(PeerLinkCount(), 0);
  wire::OpenPeerLinkRequest smallest = a.OpenRequest();
  smallest.set_window_bytes(kBlock);
  EXPECT_TRUE(a.Open(smallest).ok());
}

class PeerLimitsTest : public PeerCallsTest {
 protected:
  PeerLimitsTest() : PeerCallsTest([](Options& options) { options.max_peer_links = 2; }) {}
};

// At each limit it works, one past it the limit is named; what is closed makes room again.
TEST_F(PeerLimitsTest, LimitsAreNamed) {
  LinkedClient a(node_), b(node_);
  wire::OpenPeerLinkRequest request = a.OpenRequest();
  request.set_window_bytes((96 << 20) + 256);
  ExpectRefused(a.Open(request), grpc::RESOURCE_EXHAUSTED, "at most 100663296");
  request.set_window_bytes(64 << 20);
  ASSERT_TRUE(a.Open(request).ok());
  ExpectRefused(a.Open(request), grpc::RESOURCE_EXHAUSTED,
                "peer-window-bytes: windows take 67108864 bytes, 67108864 more");
  request.set_window_bytes(32 << 20);
  ASSERT_TRUE(a.Open(request).ok());
  ExpectRefused(b.Open(b.OpenRequest()), grpc::RESOURCE_EXHAUSTED, "max-peer-links: 2 are open");
  ASSERT_TRUE(a.Close(1).ok());
  EXPECT_TRUE(Eventually([&] { return b.Open(b.OpenRequest()).ok(); }));
  ASSERT_TRUE(a.Close(2).ok());
  EXPECT_TRUE(Eventually([&] { return b.Open(b.OpenRequest()).ok(); }));
}

class PeerMemoryTest : public PeerCallsTest {
 protected:
  PeerMemoryTest()
      : PeerCallsTest([](Options& options) { options.peer_window_bytes = uint64_t{1} << 30; }) {}
};

// The GPU has less than the options allow: the error says so, and nothing is left behind.
TEST_F(PeerMemoryTest, NoMemoryOnTheGpu_IsSaid) {
  LinkedClient a(node_);
  const uint64_t free = device_->free_bytes();
  wire::OpenPeerLinkRequest request = a.OpenRequest();
  request.set_window_bytes(uint64_t{512} << 20);
  ExpectRefused(a.Open(request), grpc::RESOURCE_EXHAUSTED, "are free");
  EXPECT_EQ(device_->free_bytes(), free);
  EXPECT_EQ(PeerLinkCount(), 0);
  EXPECT_TRUE(a.Open(a.OpenRequest()).ok());
}

// Links whose worker never comes cost NCCL's memory: there is an end to them.
TEST_F(PeerCallsTest, WorkersThatNeverCome_AreCounted) {
  LinkedClient a(node_);
  wire::OpenPeerLinkRequest request = a.OpenRequest();
  request.set_timeout_ms(1);
  grpc::Status status;
  for (uint32_t i = 0; i < PeerLinks::kMaxUnjoined; ++i) {
    ASSERT_TRUE(Eventually([&] { return (status = a.Open(request)).ok(); }))
        << status.error_message();
    ASSERT_TRUE(a.Close(a.opened.segment_id()).ok());
  }
  ASSERT_TRUE(Eventually([&] { return PeerLinkCount() == 0; }));
  ExpectRefused(a.Open(request), grpc::RESOURCE_EXHAUSTED, "256 peer links never came");
}

// The node stops while workers' calls wait.
TEST_F(PeerCallsTest, NodeStops_WithCallsWaiting) {
  LinkedClient a(node_);
  a.Link();
  std::thread store([&] {
    wire::StoreResponse stored;
    EXPECT_FALSE(a.client.Store(a.StoreOf(keys_, {0, 1, 2, 3}, 1), stored).ok());
  });
  EXPECT_TRUE(Eventually([&] { return node_.node().Sample().running_calls == 1; }));
  node_.Stop();
  store.join();
}

}  // namespace
}  // namespace fq
