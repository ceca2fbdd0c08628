// The gRPC services of a node: KvCache, Admin, health and reflection, behind a ConnectionGate.
#pragma once

#include <memory>
#include <string>

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include "absl/status/statusor.h"
#include "server/clock.h"
#include "server/connections/connection_gate.h"
#include "server/node.h"
#include "server/rpc/admin_service.h"
#include "server/rpc/kv_cache_service.h"

namespace fq {

// One thread creates, stops and destroys it.
class GrpcServer {
 public:
  // Listens as the node's options say. InvalidArgument: a certificate or key cannot be read (those
  // of --fetch-tls-* too).
  // Unavailable: an address cannot be bound.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(Node* node);  // node outlives it
  ~GrpcServer();

  int tcp_port() const { return gate_->tcp_port(); }  // 0 without --listen

  // Health checks answer NOT_SERVING from here on.
  void SetNotServing();

  // Ends streams and calls that still run after `grace`; returns when all are answered.
  void Stop(Milliseconds grace);

 private:
  GrpcServer(Node* node, std::unique_ptr<FetchCalls> fetches);

  KvCacheService kv_cache_;
  AdminService admin_;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<ConnectionGate> gate_;
};

}  // namespace fq
