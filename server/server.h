// A whole node: what it serves and where it listens. A process may hold several (tests do). One
// thread creates, drains and destroys it.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "server/metrics_listener.h"
#include "server/node.h"
#include "server/options.h"
#include "server/rpc/call_socket.h"
#include "server/rpc/grpc_server.h"
#include "server/segment_socket.h"

namespace fq {

class Server {
 public:
  // AlreadyExists: another process listens on the socket. InvalidArgument and Unavailable name
  // option or address.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const Options& options, NodeParts parts);
  ~Server();

  Node& node() { return *node_; }
  int tcp_port() const { return grpc_->tcp_port(); }  // 0 without --listen
  int metrics_port() const { return metrics_ == nullptr ? 0 : metrics_->port(); }  // 0 without

  // Health NOT_SERVING, no new Stores and sessions.
  void BeginDrain();
  // Waits up to --drain-ms for running calls, then ends what is left. False when something was.
  bool FinishDrain();

 private:
  Server() = default;
  absl::Status StartListeners();
  void EndPeerLinks();

  std::unique_ptr<Node> node_;
  std::unique_ptr<GrpcServer> grpc_;
  std::unique_ptr<SegmentSocket> segment_socket_;
  std::unique_ptr<CallSocket> call_socket_;  // as segment_socket_: with --socket
  std::unique_ptr<MetricsListener> metrics_;
};

}  // namespace fq
