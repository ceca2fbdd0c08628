// Device segments over the wire: registered on the segment socket, used by Store and Load. Host
// memory in the GPU's place; what Store and Load do with them is page_path_device_test's business.
#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "server/segment_path.h"
#include "tests/testing/device_registration.h"
#include "tests/testing/host_device.h"
#include "tests/testing/running_node.h"
#include "tests/testing/segment_client.h"

namespace fq {
namespace {

namespace wire = ::flashquant::v1;

// Chunks of 64 tokens: [K|V][head][token][d] per layer, layers one after the other.
constexpr uint64_t kRow = kTestHeadSize * 2, kRows = kRow * 64;
constexpr uint64_t kChunk = 2 * kTestHeads * kRows, kLayer = 8 * kChunk;

class DevicePagesTest : public testing::Test {
 protected:
  DevicePagesTest()
      : device_(new HostDevice()),
        node_([](Options&) {}, std::unique_ptr<Device>(device_)),
        client_(node_),
        worker_(ShareKind::kIpcHandle, kTestLayers * kLayer) {}

  RegistrationPacket Registration() const {
    RegistrationPacket packet;
    std::memcpy(packet.session.data(), client_.id().data(), packet.session.size());
    packet.uuid = device_->info().uuid;
    packet.allocations = {{worker_.Share().bytes, worker_.Share().handle}};
    packet.layers = {{0, 0}, {0, kLayer}};
    return packet;
  }
  OwnedFd Connect() const { return ConnectToSegments(SegmentSocketPath(node_.options().socket)); }
  uint32_t Register(const RegistrationPacket& packet) {
    const SegmentAnswer answer = AskSegments(Connect(), packet.Build(), {});
    EXPECT_EQ(answer.code, 0u) << answer.text;
    return answer.id;
  }

  // Block i in chunk first + i.
  static wire::Pages Places(uint32_t segment, uint64_t first, uint64_t blocks) {
    wire::Pages pages;
    pages.set_segment_id(segment);
    wire::PageLayout& layout = *pages.mutable_layout();
    layout.set_tokens_per_chunk(64);
    layout.set_head_stride(kRows);
    layout.set_v_offset(kTestHeads * kRows);
    layout.set_k_token_stride(kRow);
    layout.set_v_token_stride(kRow);
    layout.set_k_channel_stride(2);
    layout.set_v_channel_stride(2);
    for (uint64_t i = 0; i < blocks; ++i) {
      pages.add_places()->add_chunk_offsets((first + i) * kChunk);
    }
    return pages;
  }
  wire::StoreRequest StoreOf(uint32_t segment, const std::string& keys) {
    wire::StoreRequest request = client_.StoreOf(keys, "", wire::PROFILE_EXACT);
    *request.mutable_pages() = Places(segment, 0, keys.size() / 32);
    return request;
  }
  double Segments() { return node_.node().metrics().Values()["fq_device_segments{share=\"ipc\"}"]; }
  std::string Memory(uint64_t offset, uint64_t bytes) {
    return {reinterpret_cast<const char*>(worker_.data()) + offset, bytes};
  }
  void FillWorker() {
    for (uint64_t i = 0; i < kTestLayers * kLayer; ++i) {
      worker_.data()[i] = static_cast<std::byte>(i * 2654435761u >> 13);
    }
  }

  HostDevice* const device_;  // the node's
  RunningNode node_;
  TestClient client_;
  HostWorkerMemory worker_;
  const std::string keys_ = TestKeys("chain", 2);
};

TEST_F(DevicePagesTest, SessionSaysWhichGpu) {
  EXPECT_EQ(client_.session().device().uuid(),
            std::string(device_->info().uuid.begin(), device_->info().uuid.end()));
  EXPECT_EQ(client_.session().device().name(), device_->info().name);
  RunningNode without;
  EXPECT_FALSE(TestClient(without).session().has_device());
}

TEST_F(DevicePagesTest, StoredAndLoaded_TheSameBytesInOtherChunks) {
  FillWorker();
  const uint32_t segment = Register(Registration());
  wire::StoreResponse stored;
  ASSERT_TRUE(client_.Store(StoreOf(segment, keys_), stored).ok());
  EXPECT_EQ(stored.statuses(1), wire::BLOCK_STATUS_OK);
  wire::LookupResponse found;
  ASSERT_TRUE(client_.Lookup(client_.LookupOf(keys_), found).ok());
  ASSERT_EQ(found.matched_blocks(), 2u);
  wire::LoadRequest load = client_.LoadOf(found.lease_id(), 2);
  *load.mutable_pages() = Places(segment, 5, 2);
  wire::LoadResponse loaded;
  const grpc::Status status = client_.Load(load, loaded);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(loaded.statuses(0), wire::BLOCK_STATUS_OK);
  for (uint64_t layer : {uint64_t{0}, kLayer}) {
    EXPECT_EQ(Memory(layer + 5 * kChunk, 2 * kChunk), Memory(layer, 2 * kChunk));
  }
}

TEST_F(DevicePagesTest, BadRegistrations_AreRefusedWithBothValues) {
  auto refused = [&](const RegistrationPacket& packet, const std::string& part) {
    const SegmentAnswer answer = AskSegments(Connect(), packet.Build(), {});
    EXPECT_NE(answer.code, 0u);
    EXPECT_NE(answer.text.find(part), std::string::npos) << answer.text;
  };
  RegistrationPacket other_gpu = Registration();
  other_gpu.uuid[0] ^= 1;
  refused(other_gpu, "the node's GPU is");
  RegistrationPacket one_layer = Registration();
  one_layer.layers.pop_back();
  refused(one_layer, "layers = 1: the session's range has 2");
  RegistrationPacket unknown = Registration();
  unknown.session = {};
  refused(unknown, "no such session");
  RegistrationPacket no_such_memory = Registration();
  no_such_memory.allocations[0].handle = {};
  refused(no_such_memory, "allocations[0]");
  EXPECT_EQ(device_->open_mappings(), 0);
}

TEST_F(DevicePagesTest, NodeWithoutAGpu_RefusesAndNamesTheOption) {
  RunningNode without;
  TestClient client(without);
  RegistrationPacket packet = Registration();
  std::memcpy(packet.session.data(), client.id().data(), packet.session.size());
  const SegmentAnswer answer = AskSegments(
      ConnectToSegments(SegmentSocketPath(without.options().socket)), packet.Build(), {});
  EXPECT_EQ(answer.code, static_cast<uint32_t>(absl::StatusCode::kFailedPrecondition));
  EXPECT_NE(answer.text.find("--device"), std::string::npos) << answer.text;
}

TEST_F(DevicePagesTest, LayoutsThatTheKernelsCannotRead_AreNamed) {
  const uint32_t segment = Register(Registration());
  auto refused = [&](const std::function<void(wire::Pages&)>& spoil, const std::string& part) {
    wire::StoreRequest request = StoreOf(segment, keys_);
    spoil(*request.mutable_pages());
    wire::StoreResponse response;
    const grpc::Status status = client_.Store(request, response);
    EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT) << part;
    EXPECT_NE(status.error_message().find(part), std::string::npos) << status.error_message();
  };
  using P = wire::Pages;
  refused([](P& p) { p.mutable_layout()->set_layer_stride(kLayer); }, "layer_stride");
  refused([](P& p) { p.mutable_layout()->set_v_token_stride(2 * kRow); }, "v_token_stride");
  refused([](P& p) { p.mutable_layout()->set_k_channel_stride(4); }, "k_channel_stride");
  refused([](P& p) { p.mutable_layout()->set_head_stride(kRows + 2); }, "head_stride");
  refused([](P& p) { p.mutable_layout()->set_v_offset(8); }, "v_offset");
  refused([](P& p) { p.mutable_places(1)->set_chunk_offsets(0, 128); }, "places[1]");
  refused([](P& p) { p.mutable_places(1)->set_chunk_offsets(0, 8 * kChunk); }, "places[1]");
}

TEST_F(DevicePagesTest, UnregisterIsAnsweredWhenTheLastCallHasEnded) {
  HostWorkerEvent event;
  RegistrationPacket packet = Registration();
  packet.event = event.handle();
  const uint32_t segment = Register(packet);
  event.Record();
  std::thread store([&] {
    wire::StoreResponse response;
    EXPECT_TRUE(client_.Store(StoreOf(segment, keys_), response).ok());
  });
  EXPECT_TRUE(Eventually([&] { return event.asked() > 0; }));  // it has found its segment
  const OwnedFd peer = Connect();
  SendPacket(peer, SegmentPacket(client_.id(), 2, segment, 0), {});
  EXPECT_TRUE(Eventually([&] { return Segments() == 0; }));
  char byte = 0;
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // for an answer that comes too early
  EXPECT_LT(recv(peer.get(), &byte, 1, MSG_DONTWAIT), 0);
  EXPECT_EQ(AskSegments(Connect(), SegmentPacket(client_.id(), 2, segment, 0), {}).code,
            static_cast<uint32_t>(absl::StatusCode::kNotFound));  // others are served meanwhile
  event.Complete();
  EXPECT_EQ(ReceiveAnswer(peer).code, 0u);
  EXPECT_EQ(device_->open_mappings(), 0);
  store.join();
}

TEST_F(DevicePagesTest, GpuFails_MetricsAndNewSessionsKnow) {
  EXPECT_GT(node_.node().metrics().Values()["fq_device_capacity_bytes"], 0);
  const uint32_t segment = Register(Registration());
  device_->Lose();
  wire::StoreResponse response;
  EXPECT_EQ(client_.Store(StoreOf(segment, keys_), response).error_code(), grpc::UNAVAILABLE);
  EXPECT_EQ(node_.node().metrics().Values()["fq_device_capacity_bytes"], 0);
  EXPECT_FALSE(TestClient(node_).session().has_device());
}

TEST_F(DevicePagesTest, FetchedBlocks_ComeOffOneGpuAndGoOnAnother) {
  FillWorker();
  wire::StoreResponse stored;
  ASSERT_TRUE(client_.Store(StoreOf(Register(Registration()), keys_), stored).ok());
  RunningNode here([&](Options& o) { o.fetch_from = {"unix://" + node_.options().socket}; },
                   std::make_unique<HostDevice>());
  TestClient client(here);
  wire::FetchRequest fetch;
  fetch.set_session_id(client.id());
  fetch.set_node("unix://" + node_.options().socket);
  fetch.set_keys(keys_);
  grpc::ClientContext context;
  wire::FetchResponse fetched;
  ASSERT_TRUE(client.stub().Fetch(&context, fetch, &fetched).ok());
  EXPECT_EQ(fetched.statuses(1), wire::BLOCK_STATUS_OK) << fetched.stopped();
  RegistrationPacket packet = Registration();
  std::memcpy(packet.session.data(), client.id().data(), packet.session.size());
  const SegmentAnswer registered =
      AskSegments(ConnectToSegments(SegmentSocketPath(here.options().socket)), packet.Build(), {});
  ASSERT_EQ(registered.code, 0u) << registered.text;
  wire::LookupResponse found;
  ASSERT_TRUE(client.Lookup(client.LookupOf(keys_), found).ok());
  wire::LoadRequest load = client.LoadOf(found.lease_id(), 2);
  *load.mutable_pages() = Places(registered.id, 5, 2);
  wire::LoadResponse loaded;
  ASSERT_TRUE(client.Load(load, loaded).ok());
  EXPECT_EQ(loaded.statuses(1), wire::BLOCK_STATUS_OK);
  for (uint64_t layer : {uint64_t{0}, kLayer}) {
    EXPECT_EQ(Memory(layer + 5 * kChunk, 2 * kChunk), Memory(layer, 2 * kChunk));
  }
  EXPECT_EQ(here.node().tiers().Stats().promoted_slabs, 2u);
}

TEST_F(DevicePagesTest, SessionEnds_ItsMappingsGo) {
  Register(Registration());
  EXPECT_EQ(device_->open_mappings(), 1);
  EXPECT_EQ(Segments(), 1);
  client_.End();
  EXPECT_TRUE(Eventually([&] { return device_->open_mappings() == 0; }));
}

}  // namespace
}  // namespace fq
