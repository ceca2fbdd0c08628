// The data plane on gRPC (kv_cache_calls.h). Thread-safe. Load takes and gives bytes instead of
// messages (load_reply.h).
#pragma once

#include <memory>

#include "flashquant/v1/kv_cache.grpc.pb.h"
#include "server/node.h"
#include "server/rpc/call_runner.h"
#include "server/rpc/fetch_calls.h"
#include "server/rpc/kv_cache_calls.h"
#include "server/rpc/wire.h"

namespace fq {

class KvCacheService final
    : public wire::KvCache::WithRawCallbackMethod_Load<wire::KvCache::CallbackService> {
 public:
  KvCacheService(Node* node, std::unique_ptr<FetchCalls> fetches);  // node outlives the service

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
  grpc::ServerUnaryReactor* Fetch(grpc::CallbackServerContext* context,
                                  const wire::FetchRequest* request,
                                  wire::FetchResponse* response) override;
  grpc::ServerUnaryReactor* OpenPeerLink(grpc::CallbackServerContext* context,
                                         const wire::OpenPeerLinkRequest* request,
                                         wire::OpenPeerLinkResponse* response) override;
  grpc::ServerUnaryReactor* ClosePeerLink(grpc::CallbackServerContext* context,
                                          const wire::ClosePeerLinkRequest* request,
                                          wire::ClosePeerLinkResponse* response) override;

 private:
  grpc::ServerUnaryReactor* StoreFromPeer(grpc::CallbackServerContext* context,
                                          const wire::StoreRequest* request,
                                          wire::StoreResponse* response);

  Node* const node_;
  const CallRunner runner_;
  const KvCacheCalls calls_;
  const std::unique_ptr<FetchCalls> fetches_;
};

}  // namespace fq
