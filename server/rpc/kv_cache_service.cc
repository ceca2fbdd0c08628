#include "server/rpc/kv_cache_service.h"

#include "absl/status/status.h"
#include "kernels/base/status_macros.h"
#include "server/rpc/call_methods.h"
#include "server/rpc/identity.h"
#include "server/rpc/load_reply.h"
#include "server/rpc/session_stream.h"

namespace fq {

KvCacheService::KvCacheService(Node* node, std::unique_ptr<FetchCalls> fetches)
    : node_(node), runner_(node), calls_(node), fetches_(std::move(fetches)) {}

grpc::ServerBidiReactor<wire::SessionRequest, wire::SessionResponse>* KvCacheService::Session(
    grpc::CallbackServerContext* context) {
  return new SessionStream(node_, context);  // deletes itself
}

grpc::ServerUnaryReactor* KvCacheService::Store(grpc::CallbackServerContext* context,
                                                const wire::StoreRequest* request,
                                                wire::StoreResponse* response) {
  if (request->peer_sequence() != 0) return StoreFromPeer(context, request, response);
  return runner_.Run(context, methods::kStore, [=](const CallContext& call) -> absl::Status {
    FQ_ASSIGN_OR_RETURN(const Caller caller, CallerOf(*context, *node_));
    return calls_.Store(call, caller.tenant, *request, *response);
  });
}

grpc::ServerUnaryReactor* KvCacheService::StoreFromPeer(grpc::CallbackServerContext* context,
                                                        const wire::StoreRequest* request,
                                                        wire::StoreResponse* response) {
  const auto store = std::make_shared<PeerStore>(node_, request);
  return runner_.RunAfter(
      context, methods::kStore,
      [=](CallRunner::Resume resume) -> absl::Status {
        FQ_ASSIGN_OR_RETURN(const Caller caller, CallerOf(*context, *node_));
        return calls_.BeginStore(caller.tenant, *request, *store, std::move(resume));
      },
      [=](const CallContext& call) { return KvCacheCalls::EndStore(call, *store, *response); });
}

grpc::ServerUnaryReactor* KvCacheService::OpenPeerLink(grpc::CallbackServerContext* context,
                                                       const wire::OpenPeerLinkRequest* request,
                                                       wire::OpenPeerLinkResponse* response) {
  return runner_.Run(context, methods::kOpenPeerLink, [=](const CallContext&) -> absl::Status {
    FQ_ASSIGN_OR_RETURN(const Caller caller, CallerOf(*context, *node_));
    return calls_.OpenPeerLink(caller.tenant, *request, *response);
  });
}

grpc::ServerUnaryReactor* KvCacheService::ClosePeerLink(grpc::CallbackServerContext* context,
                                                        const wire::ClosePeerLinkRequest* request,
                                                        wire::ClosePeerLinkResponse*) {
  return runner_.Run(context, methods::kClosePeerLink, [=](const CallContext&) -> absl::Status {
    FQ_ASSIGN_OR_RETURN(const Caller caller, CallerOf(*context, *node_));
    return calls_.ClosePeerLink(caller.tenant, *request);
  });
}

grpc::ServerUnaryReactor* KvCacheService::Lookup(grpc::CallbackServerContext* context,
                                                 const wire::LookupRequest* request,
                                                 wire::LookupResponse* response) {
  return runner_.Run(context, methods::kLookup, [=](const CallContext&) -> absl::Status {
    FQ_ASSIGN_OR_RETURN(const Caller caller, CallerOf(*context, *node_));
    return calls_.Lookup(caller.tenant, *request, *response);
  });
}

grpc::ServerUnaryReactor* KvCacheService::Load(grpc::CallbackServerContext* context,
                                               const grpc::ByteBuffer* message,
                                               grpc::ByteBuffer* response) {
  return runner_.Run(context, methods::kLoad, [=](const CallContext& call) -> absl::Status {
    FQ_ASSIGN_OR_RETURN(const wire::LoadRequest request, ParseLoadRequest(*message));
    FQ_ASSIGN_OR_RETURN(const Caller caller, CallerOf(*context, *node_));
    LoadReply reply;
    FQ_RETURN_IF_ERROR(calls_.Load(call, caller.tenant, request, reply));
    *response = JoinLoadReply(reply.head, std::move(reply.payload));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* KvCacheService::Fetch(grpc::CallbackServerContext* context,
                                                const wire::FetchRequest* request,
                                                wire::FetchResponse* response) {
  return runner_.Run(context, methods::kFetch, [=](const CallContext& call) -> absl::Status {
    FQ_ASSIGN_OR_RETURN(const Caller caller, CallerOf(*context, *node_));
    FQ_ASSIGN_OR_RETURN(const auto session, calls_.CheckFetch(caller.tenant, *request));
    return fetches_->Fetch(call, context, *session, *request, *response);
  });
}

grpc::ServerUnaryReactor* KvCacheService::Attend(grpc::CallbackServerContext* context,
                                                 const wire::AttendRequest* request,
                                                 wire::AttendResponse* response) {
  return runner_.Run(context, methods::kAttend, [=](const CallContext& call) -> absl::Status {
    FQ_ASSIGN_OR_RETURN(const Caller caller, CallerOf(*context, *node_));
    return calls_.Attend(call, caller.tenant, *request, *response);
  });
}

grpc::ServerUnaryReactor* KvCacheService::Release(grpc::CallbackServerContext* context,
                                                  const wire::ReleaseRequest* request,
                                                  wire::ReleaseResponse* response) {
  return runner_.Run(context, methods::kRelease, [=](const CallContext&) -> absl::Status {
    FQ_ASSIGN_OR_RETURN(const Caller caller, CallerOf(*context, *node_));
    return calls_.Release(caller.tenant, *request, *response);
  });
}

}  // namespace fq
