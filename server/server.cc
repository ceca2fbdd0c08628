#include "server/server.h"

#include <utility>

#include "kernels/base/status_macros.h"
#include "server/segment_path.h"
#include "server/socket_file.h"

namespace fq {
namespace {

constexpr Milliseconds kStopGrace{200};  // for session streams once the calls are done

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const Options& options, NodeParts parts) {
  std::unique_ptr<Server> server(new Server());
  FQ_ASSIGN_OR_RETURN(server->node_, Node::Create(options, std::move(parts)));
  FQ_RETURN_IF_ERROR(server->StartListeners());
  return server;
}

absl::Status Server::StartListeners() {
  const Options& options = node_->options();
  if (!options.metrics_listen.empty()) {
    FQ_ASSIGN_OR_RETURN(metrics_,
                        MetricsListener::Start(options.metrics_listen, &node_->metrics()));
  }
  const std::string segment_path = SegmentSocketPath(options.socket);
  if (!options.socket.empty()) {
    FQ_RETURN_IF_ERROR(PrepareSocketPath(options.socket));
    FQ_RETURN_IF_ERROR(PrepareSocketPath(segment_path));
    FQ_ASSIGN_OR_RETURN(
        segment_socket_,
        SegmentSocket::Start({segment_path, SocketModeBits(options), &node_->sessions(),
                              &node_->metrics(), node_->device()}));
    const std::string call_path = CallSocketPath(options.socket);
    FQ_RETURN_IF_ERROR(PrepareSocketPath(call_path));
    FQ_ASSIGN_OR_RETURN(call_socket_, CallSocket::Start(node_.get(), call_path));
  }
  FQ_ASSIGN_OR_RETURN(grpc_, GrpcServer::Start(node_.get()));
  return absl::OkStatus();
}

Server::~Server() {
  metrics_.reset();
  EndPeerLinks();  // what waits for them holds up the sockets
  call_socket_.reset();
  grpc_.reset();
  segment_socket_.reset();
}

void Server::EndPeerLinks() {
  if (node_ != nullptr && node_->peer_links() != nullptr) node_->peer_links()->EndAll();
}

void Server::BeginDrain() {
  grpc_->SetNotServing();
  node_->BeginDrain();
}

bool Server::FinishDrain() {
  const bool idle = node_->WaitIdle(Milliseconds(node_->options().drain_ms));
  EndPeerLinks();
  if (call_socket_ != nullptr) call_socket_->Stop();
  grpc_->Stop(kStopGrace);
  return idle;
}

}  // namespace fq
