#include "tests/testing/running_node.h"

#include <gtest/gtest.h>
#include <openssl/sha.h>
#include <spdlog/sinks/null_sink.h>
#include <stdlib.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "kernels/codec/float_convert.h"
#include "tests/testing/codec_set_builder.h"

namespace fq {
namespace wire = ::flashquant::v1;

TempFolder::TempFolder() : path_("/tmp/fqt-XXXXXX") { EXPECT_NE(mkdtemp(path_.data()), nullptr); }

TempFolder::~TempFolder() { std::filesystem::remove_all(path_); }

Options TestOptions(const TempFolder& folder) {
  Options options;
  options.socket = folder.path() + "/fq.sock";
  options.metrics_listen = "";
  options.host_bytes = 64 << 20;
  options.device_bytes = 64 << 20;
  options.workers = 2;
  options.default_deadline_ms = options.max_deadline_ms = options.drain_ms =
      static_cast<uint32_t>(Milliseconds(kPatience).count());
  return options;
}

RunningNode::RunningNode(const std::function<void(Options&)>& change,
                         std::unique_ptr<Device> device, std::unique_ptr<PeerTransport> peers) {
  options_ = TestOptions(folder_);
  change(options_);
  log_ = std::make_unique<Log>(std::make_shared<spdlog::sinks::null_sink_mt>(), LogLevel::kDebug,
                               LogFormat::kText);
  codec_set_ = *CodecSet::Parse(BuildCodecSet(kTestLayers, kTestHeads, kTestHeadSize, 1));
  NodeParts parts;
  parts.clock = [this] { return clock_.Now(); };
  parts.codec_sets = {codec_set_};
  parts.log = log_.get();
  parts.device = std::move(device);
  parts.peers = std::move(peers);
  auto server = Server::Start(options_, std::move(parts));
  EXPECT_TRUE(server.ok()) << server.status();
  server_ = *std::move(server);
}

RunningNode::~RunningNode() = default;

std::shared_ptr<grpc::Channel> RunningNode::Connect() const {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
  arguments.SetMaxReceiveMessageSize(-1);
  return grpc::CreateCustomChannel("unix:" + options_.socket, grpc::InsecureChannelCredentials(),
                                   arguments);
}

wire::SessionRequest TestSessionRequest(const RunningNode& node) {
  wire::SessionRequest request;
  request.set_namespace_name("tests/one");
  wire::NamespaceDescriptor& d = *request.mutable_namespace_descriptor();
  d.set_model("synthetic");
  d.set_layers(kTestLayers);
  d.set_kv_heads(kTestHeads);
  d.set_head_size(kTestHeadSize);
  d.set_dtype(wire::DTYPE_BF16);
  const CodecSetId& id = node.codec_set().id();
  d.set_codec_set_id(std::string(id.begin(), id.end()));
  request.mutable_range()->set_layer_end(kTestLayers);
  request.mutable_range()->set_head_end(kTestHeads);
  request.set_client_name("test");
  return request;
}

std::string TestKeys(const std::string& name, size_t blocks) {
  std::string keys;
  for (size_t i = 0; i < blocks; ++i) {
    const std::string text = absl::StrCat(name, "/", i);
    uint8_t key[SHA256_DIGEST_LENGTH];
    SHA256(reinterpret_cast<const uint8_t*>(text.data()), text.size(), key);
    keys.append(reinterpret_cast<const char*>(key), sizeof(key));
  }
  return keys;
}

std::string TestPages(const CodecSet& codec_set, size_t blocks, uint64_t seed) {
  std::string bytes;
  std::vector<float> row(kTestHeadSize);
  for (size_t page = 0; page < blocks * kTestLayers * kTestHeads; ++page) {
    const int layer = static_cast<int>(page / kTestHeads) % kTestLayers;
    const int head = static_cast<int>(page % kTestHeads);
    for (int token = 0; token < 2 * kBlockTokens; ++token) {
      const HeadCodec& codec =
          token < kBlockTokens ? codec_set.k(layer, head) : codec_set.v(layer, head);
      MakeRow(codec, kTestHeadSize, seed++, row.data());
      for (float value : row) {
        const uint16_t bits = FloatToBFloat16(value);
        bytes.append(reinterpret_cast<const char*>(&bits), sizeof(bits));
      }
    }
  }
  return bytes;
}

wire::Pages TestPlaces(size_t blocks, size_t first) {
  wire::Pages pages;
  constexpr uint64_t kRow = kTestHeadSize * 2, kRows = kRow * 64;
  wire::PageLayout& layout = *pages.mutable_layout();
  layout.set_tokens_per_chunk(64);
  layout.set_layer_stride(2 * kRows * kTestHeads);
  layout.set_head_stride(2 * kRows);
  layout.set_k_token_stride(kRow);
  layout.set_k_channel_stride(2);
  layout.set_v_offset(kRows);
  layout.set_v_token_stride(kRow);
  layout.set_v_channel_stride(2);
  for (size_t i = 0; i < blocks; ++i) {
    pages.add_places()->add_chunk_offsets((first + i) * kTestBlockBytes);
  }
  return pages;
}

double RelativeError(const std::string& expected, const std::string& actual) {
  EXPECT_EQ(expected.size(), actual.size());
  if (expected.size() != actual.size()) return INFINITY;
  double error = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); i += 2) {
    uint16_t e = 0, a = 0;
    std::memcpy(&e, &expected[i], 2);
    std::memcpy(&a, &actual[i], 2);
    const double difference = BFloat16ToFloat(e) - BFloat16ToFloat(a);
    error += difference * difference;
    norm += BFloat16ToFloat(e) * BFloat16ToFloat(e);
  }
  return std::sqrt(error / norm);
}

TestClient::TestClient(RunningNode& node) : TestClient(node, TestSessionRequest(node)) {}

TestClient::TestClient(RunningNode& node, const wire::SessionRequest& request) {
  std::shared_ptr<grpc::Channel> channel = node.Connect();
  stub_ = wire::KvCache::NewStub(channel);
  admin_ = wire::Admin::NewStub(channel);
  stream_ = stub_->Session(&stream_context_);
  stream_->Write(request);
  if (stream_->Read(&session_)) return;
  opened_ = stream_->Finish();
  stream_.reset();
}

TestClient::~TestClient() { End(); }

std::string TestClient::LoadAll(const std::string& keys) {
  wire::LookupResponse found;
  EXPECT_TRUE(Lookup(LookupOf(keys), found).ok());
  if (found.matched_blocks() == 0) return "";
  wire::LoadResponse loaded;
  EXPECT_TRUE(Load(LoadOf(found.lease_id(), found.matched_blocks()), loaded).ok());
  return loaded.payload();
}

void TestClient::End() {
  if (stream_ == nullptr) return;
  stream_->WritesDone();
  stream_->Finish();
  stream_.reset();
}

wire::StoreRequest TestClient::StoreOf(const std::string& keys, const std::string& payload,
                                       wire::Profile profile) const {
  wire::StoreRequest request;
  request.set_session_id(id());
  request.set_profile(profile);
  request.set_keys(keys);
  *request.mutable_pages() = TestPlaces(keys.size() / 32, 0);
  request.set_payload(payload);
  return request;
}

wire::LookupRequest TestClient::LookupOf(const std::string& keys) const {
  wire::LookupRequest request;
  request.set_session_id(id());
  request.set_keys(keys);
  return request;
}

wire::LoadRequest TestClient::LoadOf(const std::string& lease_id, uint32_t blocks) const {
  wire::LoadRequest request;
  request.set_session_id(id());
  request.set_lease_id(lease_id);
  request.set_block_count(blocks);
  return request;
}

wire::FetchRequest TestClient::FetchOf(const std::string& keys, const std::string& node) const {
  wire::FetchRequest request;
  request.set_session_id(id());
  request.set_node(node);
  request.set_keys(keys);
  return request;
}

grpc::Status TestClient::Store(const wire::StoreRequest& request, wire::StoreResponse& reply) {
  grpc::ClientContext context;
  return stub_->Store(&context, request, &reply);
}

grpc::Status TestClient::Lookup(const wire::LookupRequest& request, wire::LookupResponse& reply) {
  grpc::ClientContext context;
  return stub_->Lookup(&context, request, &reply);
}

grpc::Status TestClient::Load(const wire::LoadRequest& request, wire::LoadResponse& reply) {
  grpc::ClientContext context;
  return stub_->Load(&context, request, &reply);
}

wire::LookupResponse TestClient::StoreAndLookup(const std::string& keys, const std::string& payload,
                                                wire::Profile profile) {
  wire::StoreResponse stored;
  const grpc::Status status = Store(StoreOf(keys, payload, profile), stored);
  EXPECT_TRUE(status.ok()) << status.error_message();
  for (int block_status : stored.statuses()) EXPECT_EQ(block_status, wire::BLOCK_STATUS_OK);
  wire::LookupResponse found;
  EXPECT_TRUE(Lookup(LookupOf(keys), found).ok());
  return found;
}

}  // namespace fq
