#include "server/rpc/grpc_server.h"

#include <grpc/grpc.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server_builder.h>

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace fq {
namespace {

constexpr uint64_t kMessageOverheadBytes =
    4 << 20;  // of a message beside its inline pages: keys, places
constexpr int kMaxStreamsPerConnection = 64;
constexpr int kMaxMetadataBytes = 8 << 10;
constexpr int kKeepaliveMs = 60'000;  // finds clients whose host is gone
constexpr int kKeepaliveTimeoutMs = 20'000;
constexpr int kNoPingStrikes =
    0;  // FrameFilter counts pings; gRPC 1.51 keeps 7 KB for each it minds
constexpr int kReadChunkBytes = 64 << 10;  // what is parsed at once
constexpr int kMaxSyncThreads = 64;        // of health and reflection; data calls run on callbacks

void SetLimits(const Options& options, grpc::ServerBuilder& builder) {
  const int message_bytes = static_cast<int>(options.max_inline_bytes + kMessageOverheadBytes);
  builder.SetMaxReceiveMessageSize(message_bytes);
  builder.SetMaxSendMessageSize(message_bytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, kNoPingStrikes);
  builder.AddChannelArgument(GRPC_ARG_TCP_MAX_READ_CHUNK_SIZE, kReadChunkBytes);
  grpc::ResourceQuota quota("flashquantd");
  quota.SetMaxThreads(kMaxSyncThreads);
  builder.SetResourceQuota(quota);
}

}  // namespace

GrpcServer::GrpcServer(Node* node, std::unique_ptr<FetchCalls> fetches)
    : kv_cache_(node, std::move(fetches)), admin_(node) {}

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(Node* node) {
  // Held for good: the library's own shutdown waits up to 10 s for its backup poller (gRPC 1.51).
  grpc_init();
  const Options& options = node->options();
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  FQ_ASSIGN_OR_RETURN(auto fetches, FetchCalls::Create(node));
  std::unique_ptr<GrpcServer> result(new GrpcServer(node, std::move(fetches)));
  grpc::ServerBuilder builder;
  SetLimits(options, builder);
  result->acceptor_ = builder.experimental().AddExternalConnectionAcceptor(
      grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD,
      grpc::InsecureServerCredentials());
  builder.RegisterService(&result->kv_cache_);
  builder.RegisterService(&result->admin_);
  result->server_ = builder.BuildAndStart();
  if (result->server_ == nullptr) return absl::UnavailableError("gRPC does not start");
  FQ_ASSIGN_OR_RETURN(
      result->gate_,
      ConnectionGate::Start(
          {&options, &node->peers(), &node->metrics(), &node->log(),
           [acceptor = result->acceptor_.get()](OwnedFd fd) {
             grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
             connection.fd = fd.Release();
             acceptor->HandleNewConnection(&connection);
           }}));
  return result;
}

GrpcServer::~GrpcServer() { Stop(Milliseconds(0)); }

void GrpcServer::SetNotServing() {
  if (server_ != nullptr) server_->GetHealthCheckService()->SetServingStatus(false);
}

void GrpcServer::Stop(Milliseconds grace) {
  if (server_ == nullptr) return;
  server_->Shutdown(std::chrono::system_clock::now() + grace);
  server_->Wait();
  gate_.reset();
  server_.reset();
}

}  // namespace fq
