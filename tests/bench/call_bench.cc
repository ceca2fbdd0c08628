// What a call costs beside the work it asks for: an empty Lookup over gRPC (way 0) and over the
// call socket (1), and Store and Load over gRPC of blocks of a 70B shape (80 layers, 8 heads, d =
// 128) in engine blocks of 16 tokens in random order, on a node whose GPU does nothing and at once.
// Client and node are one process.
#include <benchmark/benchmark.h>
#include <grpcpp/grpcpp.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <numeric>
#include <random>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "client/cpp/call_socket.h"
#include "flashquant/v1/admin.grpc.pb.h"
#include "flashquant/v1/kv_cache.grpc.pb.h"
#include "kernels/base/check.h"
#include "server/segment_path.h"
#include "server/server.h"
#include "tests/testing/codec_set_builder.h"
#include "tests/testing/device_registration.h"
#include "tests/testing/host_device.h"

namespace fq {
namespace {

namespace wire = ::flashquant::v1;

constexpr int kLayers = 80, kHeads = 8, kHeadSize = 128, kChunkTokens = 16;
constexpr uint64_t kRowBytes = 2 * kHeadSize * 2;  // K and V beside each other
constexpr uint64_t kChunkBytes = kHeads * kChunkTokens * kRowBytes;
constexpr int kMostBlocks = 256, kChunksPerBlock = 64 / kChunkTokens;
constexpr uint64_t kLayerBytes = kChunkBytes * kMostBlocks * kChunksPerBlock;

class IdleQueue final : public DeviceQueue {
 public:
  absl::Status Encode(const DeviceCodec&, absl::Span<const DeviceRows>,
                      absl::Span<const DeviceBlock>) override {
    return absl::OkStatus();
  }
  absl::Status Decode(const DeviceCodec&, absl::Span<const DeviceRows>,
                      absl::Span<const DeviceBlock>, absl::Span<uint8_t> broken) override {
    std::fill(broken.begin(), broken.end(), uint8_t{0});
    return absl::OkStatus();
  }
  absl::Status CopyToHost(absl::Span<std::byte>, const std::byte*) override {
    return absl::OkStatus();
  }
  absl::Status CopyToDevice(std::byte*, absl::Span<const std::byte>) override {
    return absl::OkStatus();
  }
  absl::Status Fetch(absl::Span<const DeviceFetch>) override { return absl::OkStatus(); }
  absl::Status Finish() override { return absl::OkStatus(); }
};

class IdleDevice final : public Device {
 public:
  const DeviceInfo& info() const override { return memory_.info(); }
  absl::StatusOr<std::unique_ptr<DeviceQueue>> CreateQueue(bool) override {
    return std::make_unique<IdleQueue>();
  }
  absl::StatusOr<std::unique_ptr<MemorySpace>> CreateSpace(uint64_t bytes) override {
    return memory_.CreateSpace(bytes);
  }
  std::unique_ptr<MemorySpace> CreatePinnedSpace(uint64_t bytes) override {
    return memory_.CreatePinnedSpace(bytes);
  }
  absl::StatusOr<std::unique_ptr<DeviceMapping>> Map(const SharedAllocation& allocation) override {
    return memory_.Map(allocation);
  }
  absl::StatusOr<std::unique_ptr<WorkerEvent>> OpenEvent(const IpcHandle& handle) override {
    return memory_.OpenEvent(handle);
  }
  absl::StatusOr<std::unique_ptr<const DeviceCodec>> CreateCodec(
      const SlabShape& shape, std::shared_ptr<const CodecSet> codec_set) override {
    return memory_.CreateCodec(shape, std::move(codec_set));
  }

 private:
  HostDevice memory_{uint64_t{32} << 30};
};

OwnedFd ConnectTo(const std::string& path) {
  OwnedFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un at{};
  at.sun_family = AF_UNIX;
  std::memcpy(at.sun_path, path.data(), path.size());
  FQ_CHECK(connect(fd.get(), reinterpret_cast<sockaddr*>(&at), sizeof(at)) == 0);
  return fd;
}

// A node, a session and an engine's cache; made once.
class World {
 public:
  static World& Get() {
    static World world;
    return world;
  }

  wire::KvCache::Stub& stub() { return *stub_; }
  const std::string& session_id() const { return session_.session_id(); }
  const std::string& call_socket() const { return session_.call_socket(); }

  void NewKeys(int blocks) {
    keys_.resize(static_cast<size_t>(blocks) * 32);
    for (char& c : keys_) c = static_cast<char>(random_());
  }

  wire::StoreRequest StoreOf(int blocks) {
    NewKeys(blocks);
    wire::StoreRequest request;
    request.set_session_id(session_id());
    request.set_profile(wire::PROFILE_COMPACT);
    request.set_keys(keys_);
    *request.mutable_pages() = PlacesOf(blocks);
    return request;
  }

  wire::LookupRequest LookupOf() const {
    wire::LookupRequest request;
    request.set_session_id(session_id());
    request.set_keys(keys_);
    return request;
  }

  // The node forgets all, now and then: what it evicts and demotes is not measured here.
  void Purge() {
    if (++stores_ % 16 != 0) return;
    wire::PurgeRequest request;
    request.set_namespace_name("bench");
    wire::PurgeResponse reply;
    grpc::ClientContext context;
    FQ_CHECK(admin_->Purge(&context, request, &reply).ok());
  }

  // Of blocks that are there.
  wire::LoadRequest LoadOf(int blocks) {
    wire::StoreResponse stored;
    Ask(&wire::KvCache::Stub::Store, StoreOf(blocks), stored);
    wire::LookupResponse found;
    Ask(&wire::KvCache::Stub::Lookup, LookupOf(), found);
    FQ_CHECK(found.matched_blocks() == static_cast<uint32_t>(blocks));
    wire::LoadRequest request;
    request.set_session_id(session_id());
    request.set_lease_id(found.lease_id());
    request.set_block_count(static_cast<uint32_t>(blocks));
    *request.mutable_pages() = PlacesOf(blocks);
    return request;
  }

  template <typename Method, typename Request, typename Response>
  void Ask(Method method, const Request& request, Response& response) {
    grpc::ClientContext context;
    const grpc::Status status = (stub_.get()->*method)(&context, request, &response);
    FQ_CHECK(status.ok());
  }

 private:
  World() : worker_(ShareKind::kIpcHandle, kLayers * kLayerBytes) {
    FQ_CHECK(mkdtemp(folder_.data()) != nullptr);
    set_ = *CodecSet::Parse(BuildCodecSet(kLayers, kHeads, kHeadSize, 3));
    Options options;
    options.socket = folder_ + "/fq.sock";
    options.metrics_listen = "";
    options.device_bytes = uint64_t{24} << 30;
    options.quality_sample = 0;
    NodeParts parts;
    parts.codec_sets = {set_};
    parts.log = log_.get();
    parts.device = std::make_unique<IdleDevice>();
    server_ = *Server::Start(options, std::move(parts));
    const auto channel =
        grpc::CreateChannel("unix:" + options.socket, grpc::InsecureChannelCredentials());
    stub_ = wire::KvCache::NewStub(channel);
    admin_ = wire::Admin::NewStub(channel);
    OpenSession();
    Register(SegmentSocketPath(options.socket));
  }
  ~World() {
    stream_->WritesDone();
    stream_->Finish();
    server_.reset();
    std::filesystem::remove_all(folder_);
  }

  void OpenSession() {
    wire::SessionRequest request;
    request.set_namespace_name("bench");
    wire::NamespaceDescriptor& d = *request.mutable_namespace_descriptor();
    d.set_model("made-up");
    d.set_layers(kLayers);
    d.set_kv_heads(kHeads);
    d.set_head_size(kHeadSize);
    d.set_dtype(wire::DTYPE_F16);
    d.set_codec_set_id(std::string(set_->id().begin(), set_->id().end()));
    request.mutable_range()->set_layer_end(kLayers);
    request.mutable_range()->set_head_end(kHeads);
    stream_ = stub_->Session(&stream_context_);
    FQ_CHECK(stream_->Write(request) && stream_->Read(&session_));
  }

  void Register(const std::string& path) {
    RegistrationPacket packet;
    std::memcpy(packet.session.data(), session_id().data(), packet.session.size());
    packet.uuid = server_->node().device()->info().uuid;
    packet.allocations = {{worker_.Share().bytes, worker_.Share().handle}};
    packet.layers.clear();
    for (uint64_t i = 0; i < kLayers; ++i) packet.layers.push_back({0, i * kLayerBytes});
    const OwnedFd peer = ConnectTo(path);
    const std::string text = packet.Build();
    FQ_CHECK(send(peer.get(), text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()));
    uint32_t reply[2] = {};
    FQ_CHECK(recv(peer.get(), reply, sizeof(reply), 0) == sizeof(reply) && reply[0] == 0);
    segment_id_ = reply[1];
  }

  wire::Pages PlacesOf(int blocks) {
    std::vector<uint64_t> chunks(kMostBlocks * kChunksPerBlock);
    std::iota(chunks.begin(), chunks.end(), uint64_t{0});
    std::shuffle(chunks.begin(), chunks.end(), random_);
    wire::Pages pages;
    pages.set_segment_id(segment_id_);
    wire::PageLayout& layout = *pages.mutable_layout();
    layout.set_tokens_per_chunk(kChunkTokens);
    layout.set_head_stride(kChunkTokens * kRowBytes);
    layout.set_v_offset(kRowBytes / 2);
    layout.set_k_token_stride(kRowBytes);
    layout.set_v_token_stride(kRowBytes);
    layout.set_k_channel_stride(2);
    layout.set_v_channel_stride(2);
    for (int i = 0; i < blocks; ++i) {
      wire::BlockPlace& place = *pages.add_places();
      for (int n = 0; n < kChunksPerBlock; ++n) {
        place.add_chunk_offsets(chunks[static_cast<size_t>(i * kChunksPerBlock + n)] * kChunkBytes);
      }
    }
    return pages;
  }

  std::string folder_ = "/tmp/fqb-XXXXXX";
  const std::unique_ptr<Log> log_ = Log::ToStderr(LogLevel::kError, LogFormat::kText);
  HostWorkerMemory worker_;
  std::shared_ptr<const CodecSet> set_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<wire::KvCache::Stub> stub_;
  std::unique_ptr<wire::Admin::Stub> admin_;
  grpc::ClientContext stream_context_;
  std::unique_ptr<grpc::ClientReaderWriter<wire::SessionRequest, wire::SessionResponse>> stream_;
  wire::SessionResponse session_;
  uint32_t segment_id_ = 0;
  std::mt19937 random_{1};
  std::string keys_;
  int stores_ = 0;
};

void EmptyLookup(benchmark::State& state) {
  World& world = World::Get();
  world.NewKeys(1);
  const wire::LookupRequest request = world.LookupOf();
  wire::LookupResponse reply;
  client::CallSocket calls(world.call_socket());
  for (auto _ : state) {
    if (state.range(0) == 0) {
      world.Ask(&wire::KvCache::Stub::Lookup, request, reply);
    } else {
      const auto answer = calls.Call(client::CallKind::kLookup, request.SerializeAsString(),
                                     absl::Now() + absl::Seconds(5));
      FQ_CHECK(answer.has_value() && answer->ok() && reply.ParseFromString(**answer));
    }
  }
}
BENCHMARK(EmptyLookup)->MeasureProcessCPUTime()->UseRealTime()->Arg(0)->Arg(1);

void Store(benchmark::State& state) {
  World& world = World::Get();
  wire::StoreResponse reply;
  for (auto _ : state) {
    state.PauseTiming();
    world.Purge();
    const wire::StoreRequest request = world.StoreOf(static_cast<int>(state.range(0)));
    state.ResumeTiming();
    world.Ask(&wire::KvCache::Stub::Store, request, reply);
  }
}
BENCHMARK(Store)->MeasureProcessCPUTime()->UseRealTime()->Arg(1)->Arg(16)->Arg(256);

void Load(benchmark::State& state) {
  World& world = World::Get();
  const wire::LoadRequest request = world.LoadOf(static_cast<int>(state.range(0)));
  wire::LoadResponse reply;
  for (auto _ : state) world.Ask(&wire::KvCache::Stub::Load, request, reply);
}
BENCHMARK(Load)->MeasureProcessCPUTime()->UseRealTime()->Arg(1)->Arg(16)->Arg(256);

}  // namespace
}  // namespace fq

int main(int argc, char** argv) {
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);  // as flashquantd
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
