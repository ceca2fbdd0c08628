// The calls of the data plane, however they came: check -> call -> fill for each method of
// kv_cache.proto. `tenant` is the caller's, as its connection proves it. Thread-safe; they block
// until done.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/call_context.h"
#include "server/node.h"
#include "server/rpc/load_reply.h"
#include "server/rpc/peer_calls.h"
#include "server/rpc/validate.h"
#include "server/rpc/wire.h"

namespace fq {

class KvCacheCalls {
 public:
  explicit KvCacheCalls(Node* node);  // outlives it

  // Replies are only valid with OK. Unauthenticated: the tenant has no such session.
  absl::Status Store(const CallContext& call, const std::string& tenant,
                     const wire::StoreRequest& request, wire::StoreResponse& response) const;
  // The same with pages that come over a peer link (`request` has a peer_sequence), in two steps:
  // EndStore when `resume` has been called with OK.
  absl::Status BeginStore(const std::string& tenant, const wire::StoreRequest& request,
                          PeerStore& store, CallRunner::Resume resume) const;
  static absl::Status EndStore(const CallContext& call, PeerStore& store,
                               wire::StoreResponse& response);
  absl::Status OpenPeerLink(const std::string& tenant, const wire::OpenPeerLinkRequest& request,
                            wire::OpenPeerLinkResponse& response) const;
  absl::Status ClosePeerLink(const std::string& tenant,
                             const wire::ClosePeerLinkRequest& request) const;
  absl::Status Lookup(const std::string& tenant, const wire::LookupRequest& request,
                      wire::LookupResponse& response) const;
  absl::Status Load(const CallContext& call, const std::string& tenant,
                    const wire::LoadRequest& request, LoadReply& response) const;
  // Of a load into a segment only: InvalidArgument without `pages`.
  absl::Status LoadIntoSegment(const CallContext& call, const std::string& tenant,
                               const wire::LoadRequest& request,
                               wire::LoadResponse& response) const;
  // The session that a Fetch stores in, once everything in the request is checked but the node.
  absl::StatusOr<std::shared_ptr<Session>> CheckFetch(const std::string& tenant,
                                                      const wire::FetchRequest& request) const;
  absl::Status Attend(const CallContext& call, const std::string& tenant,
                      const wire::AttendRequest& request, wire::AttendResponse& response) const;
  absl::Status Release(const std::string& tenant, const wire::ReleaseRequest& request,
                       wire::ReleaseResponse& response) const;

 private:
  absl::StatusOr<std::shared_ptr<Session>> FindSession(const std::string& tenant,
                                                       const std::string& session_id) const;
  // The same, and PermissionDenied for a session that only reads.
  absl::StatusOr<std::shared_ptr<Session>> FindSessionToStore(const std::string& tenant,
                                                              const std::string& session_id) const;
  absl::Status DeliverIntoSegment(const CallContext& call, const Session& session,
                                  const LeasedBlocks& blocks, const wire::Pages& pages,
                                  wire::LoadResponse& response) const;
  absl::Status LoadIntoReply(const CallContext& call, const Session& session,
                             const LeasedBlocks& blocks, bool encoded, LoadReply& response) const;

  Node* const node_;
  const RequestLimits limits_;
};

}  // namespace fq
