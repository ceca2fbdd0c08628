// The control plane: check -> call -> fill for each method of admin.proto. A caller sees its own
// tenant's namespaces. Thread-safe.
#pragma once

#include <string>
#include <vector>

#include "flashquant/v1/admin.grpc.pb.h"
#include "server/call_context.h"
#include "server/node.h"
#include "server/rpc/call_runner.h"
#include "server/rpc/wire.h"

namespace fq {

class AdminService final : public wire::Admin::CallbackService {
 public:
  explicit AdminService(Node* node) : node_(node), runner_(node) {}  // node outlives the service

  grpc::ServerUnaryReactor* Status(grpc::CallbackServerContext* context,
                                   const wire::StatusRequest* request,
                                   wire::StatusResponse* response) override;
  grpc::ServerUnaryReactor* Namespaces(grpc::CallbackServerContext* context,
                                       const wire::NamespacesRequest* request,
                                       wire::NamespacesResponse* response) override;
  grpc::ServerUnaryReactor* Verify(grpc::CallbackServerContext* context,
                                   const wire::VerifyRequest* request,
                                   wire::VerifyResponse* response) override;
  grpc::ServerUnaryReactor* Purge(grpc::CallbackServerContext* context,
                                  const wire::PurgeRequest* request,
                                  wire::PurgeResponse* response) override;

 private:
  // The caller's namespaces: all, or the one of that name.
  absl::StatusOr<std::vector<NamespaceView>> Find(const grpc::CallbackServerContext& context,
                                                  const std::string& name) const;
  absl::Status FillInfo(const CallContext& call, const NamespaceView& view,
                        wire::NamespaceInfo& info) const;
  absl::Status VerifySpace(const CallContext& call, const SlabSpace& space,
                           wire::VerifyResponse& response) const;
  absl::Status PurgeSpace(const CallContext& call, const SlabSpace& space,
                          wire::PurgeResponse& response) const;

  Node* const node_;
  const CallRunner runner_;
};

}  // namespace fq
