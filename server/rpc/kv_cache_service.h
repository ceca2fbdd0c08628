// The data plane: check -> call -> fill for each method of kv_cache.proto. Thread-safe. Load takes
// and gives bytes instead of messages (load_reply.h).
#pragma once

#include "flashquant/v1/kv_cache.grpc.pb.h"
#include "server/call_context.h"
#include "server/node.h"
#include "server/rpc/call_runner.h"
#include "server/rpc/validate.h"
#include "server/rpc/wire.h"

namespace fq {

class KvCacheService final
    : public wire::KvCache::WithRawCallbackMethod_Load<wire::KvCache::CallbackService> {
 public:
  explicit KvCacheService(Node* node);  // outlives the service

  grpc::ServerBidiReactor<wire::SessionRequest, wire::SessionResponse>* Session(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* Store(grpc::CallbackServerContext* context,
                                  const wire::StoreRequest* request,
                                  wire::StoreResponse* response) override;
  grpc::ServerUnaryReactor* Lookup(grpc::CallbackServerContext* context,
                                   const wire::LookupRequest* request,
                                   wire::LookupResponse* response) override;
  grpc::ServerUnaryReactor* Load(grpc::CallbackServerContext* context,
                                 const grpc::ByteBuffer* request,
                                 grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Attend(grpc::CallbackServerContext* context,
                                   const wire::AttendRequest* request,
                                   wire::AttendResponse* response) override;
  grpc::ServerUnaryReactor* Release(grpc::CallbackServerContext* context,
                                    const wire::ReleaseRequest* request,
                                    wire::ReleaseResponse* response) override;

 private:
  // The caller's own session. Unauthenticated: none of that id, or another tenant's.
  absl::StatusOr<std::shared_ptr<fq::Session>> FindSession(
      const grpc::CallbackServerContext& context, const std::string& session_id) const;

  absl::Status DoStore(const CallContext& call, fq::Session& session,
                       const wire::StoreRequest& request, wire::StoreResponse& response) const;
  absl::Status DoLookup(fq::Session& session, const wire::LookupRequest& request,
                        wire::LookupResponse& response) const;
  absl::Status DoLoad(const CallContext& call, fq::Session& session,
                      const wire::LoadRequest& request, grpc::ByteBuffer& response) const;
  absl::Status LoadIntoSegment(const CallContext& call, fq::Session& session,
                               const LeasedBlocks& blocks, const wire::Pages& pages,
                               grpc::ByteBuffer& response) const;
  absl::Status LoadIntoReply(const CallContext& call, fq::Session& session,
                             const LeasedBlocks& blocks, bool encoded,
                             grpc::ByteBuffer& response) const;
  absl::Status DoAttend(const CallContext& call, fq::Session& session,
                        const wire::AttendRequest& request, wire::AttendResponse& response) const;
  absl::Status DoRelease(fq::Session& session, const wire::ReleaseRequest& request,
                         wire::ReleaseResponse& response) const;

  Node* const node_;
  const CallRunner runner_;
  const RequestLimits limits_;
};

}  // namespace fq
