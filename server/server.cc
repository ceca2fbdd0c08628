#include "server/server.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/segment_path.h"
#include "server/socket_file.h"

namespace fq {
namespace {

constexpr Milliseconds kStopGrace{200};  // for session streams once the calls are done

// Names the option: folder and sockets follow from it.
absl::Status OfSocket(const Options& options, const absl::Status& status) {
  if (status.ok()) return status;
  return {status.code(), absl::StrCat("--socket = ", options.socket, ": ", status.message())};
}

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
  if (!options.socket.empty()) {
    const std::string segment_path = SegmentSocketPath(options.socket);
    const std::string call_path = CallSocketPath(options.socket);
    for (const std::string& path : {options.socket, segment_path, call_path}) {
      FQ_RETURN_IF_ERROR(OfSocket(options, PrepareSocketPath(path)));
    }
    auto segments = SegmentSocket::Start({segment_path, SocketModeBits(options), &node_->sessions(),
                                          &node_->metrics(), node_->device()});
    FQ_RETURN_IF_ERROR(OfSocket(options, segments.status()));
    segment_socket_ = *std::move(segments);
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
