// Fetch: blocks that another node holds become this node's (server/README.md, "Life of a Fetch").
// Thread-safe; blocks until done.
#pragma once

#include <grpcpp/server_context.h>

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/call_context.h"
#include "server/node.h"
#include "server/peers/remote_node.h"
#include "server/rpc/wire.h"
#include "server/sessions.h"

namespace fq {

class FetchCalls {
 public:
  // Reads the files of --fetch-tls-*. InvalidArgument names option and file.
  static absl::StatusOr<std::unique_ptr<FetchCalls>> Create(Node* node);  // outlives it

  // `parent`: ends the steps under way when it is cancelled; may be null. The request is checked
  // but for its session.
  absl::Status Fetch(const CallContext& call, const grpc::CallbackServerContext* parent,
                     const Session& session, const wire::FetchRequest& request,
                     wire::FetchResponse& response) const;

 private:
  FetchCalls(Node* node, const RemoteTls& tls);

  Node* const node_;
  const RemoteNodes nodes_;
};

}  // namespace fq
