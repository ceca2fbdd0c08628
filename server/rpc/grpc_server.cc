#include "server/rpc/grpc_server.h"

#include <grpc/grpc.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server_builder.h>

#include <fstream>
#include <sstream>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace fq {
namespace {

constexpr uint64_t kMessageOverheadBytes =
    4 << 20;  // of a message beside its inline pages: keys, places
constexpr int kMaxStreamsPerConnection = 256;
constexpr int kMaxMetadataBytes = 8 << 10;
constexpr int kKeepaliveMs = 60'000;  // finds clients whose host is gone
constexpr int kKeepaliveTimeoutMs = 20'000;
constexpr int kMaxSyncThreads = 64;  // of health and reflection; data calls run on callbacks

absl::StatusOr<std::string> ReadPem(absl::string_view option, const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  if (!in || !(text << in.rdbuf())) {
    return absl::InvalidArgumentError(absl::StrCat("--", option, " = ", path, ": cannot be read"));
  }
  return text.str();
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> CredentialsOf(const Options& options) {
  if (options.tls_cert.empty()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions tls(GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  grpc::SslServerCredentialsOptions::PemKeyCertPair pair;
  FQ_ASSIGN_OR_RETURN(pair.cert_chain, ReadPem("tls-cert", options.tls_cert));
  FQ_ASSIGN_OR_RETURN(pair.private_key, ReadPem("tls-key", options.tls_key));
  tls.pem_key_cert_pairs.push_back(std::move(pair));
  if (!options.tls_client_ca.empty()) {
    FQ_ASSIGN_OR_RETURN(tls.pem_root_certs, ReadPem("tls-client-ca", options.tls_client_ca));
    tls.client_certificate_request = GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY;
  }
  return grpc::SslServerCredentials(tls);
}

void SetLimits(const Options& options, grpc::ServerBuilder& builder) {
  const int message_bytes = static_cast<int>(options.max_inline_bytes + kMessageOverheadBytes);
  builder.SetMaxReceiveMessageSize(message_bytes);
  builder.SetMaxSendMessageSize(message_bytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a second node on the port must fail
  grpc::ResourceQuota quota("flashquantd");
  quota.SetMaxThreads(kMaxSyncThreads);
  builder.SetResourceQuota(quota);
}

}  // namespace

GrpcServer::GrpcServer(Node* node) : kv_cache_(node), admin_(node) {}

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(Node* node) {
  // Held for good: the library's own shutdown waits up to 10 s for its backup poller (gRPC 1.51).
  grpc_init();
  const Options& options = node->options();
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  std::unique_ptr<GrpcServer> result(new GrpcServer(node));
  grpc::ServerBuilder builder;
  SetLimits(options, builder);
  if (!options.socket.empty()) {
    builder.AddListeningPort(absl::StrCat("unix:", options.socket),
                             grpc::InsecureServerCredentials());
  }
  if (!options.listen.empty()) {
    FQ_ASSIGN_OR_RETURN(auto credentials, CredentialsOf(options));
    builder.AddListeningPort(options.listen, credentials, &result->tcp_port_);
  }
  builder.RegisterService(&result->kv_cache_);
  builder.RegisterService(&result->admin_);
  result->server_ = builder.BuildAndStart();
  if (result->server_ == nullptr) {
    return absl::UnavailableError(absl::StrCat("cannot listen on --socket = '", options.socket,
                                               "', --listen = '", options.listen,
                                               "': an address is taken, or a certificate is bad"));
  }
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
  server_.reset();
}

}  // namespace fq
