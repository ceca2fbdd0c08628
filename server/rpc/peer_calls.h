// What calls do over a peer link (kv_cache.proto, "Peer links"). Thread-safe.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "server/call_context.h"
#include "server/node.h"
#include "server/page_path.h"
#include "server/rpc/call_runner.h"
#include "server/rpc/validate.h"
#include "server/rpc/wire.h"

namespace fq {

absl::Status DoOpenPeerLink(Node& node, Session& session, const wire::OpenPeerLinkRequest& request,
                            wire::OpenPeerLinkResponse& response);
absl::Status DoClosePeerLink(Session& session, const wire::ClosePeerLinkRequest& request);

// A Store whose pages come over a link: Begin receives them, End stores them.
class PeerStore {
 public:
  PeerStore(Node* node, const wire::StoreRequest* request) : node_(node), request_(request) {}

  // Checks the whole request; `resume` is called when the pages are here. An error breaks the link.
  absl::Status Begin(std::shared_ptr<Session> session, const RequestLimits& limits,
                     CallRunner::Resume resume);
  absl::StatusOr<std::vector<BlockOutcome>> End(const CallContext& context);

 private:
  absl::Status Receive(const RequestLimits& limits, CallRunner::Resume resume);
  absl::StatusOr<std::vector<BlockOutcome>> StoreWhole(const CallContext& context);

  Node* const node_;
  const wire::StoreRequest* const request_;
  std::shared_ptr<Session> session_;
  PeerSegment segment_;
  StoreCall call_;
};

// A Load over a link: the reply says what is on its way.
struct PeerLoad {
  Node* node;
  const CallContext& context;
  Session& session;
  const PeerSegment& segment;
  std::shared_ptr<const Lease> lease;
  LeasedBlocks blocks;  // of it

  absl::Status Decoded(const wire::Pages& pages, wire::LoadResponse& response) const;
  absl::Status Encoded(const wire::Pages& pages, wire::LoadResponse& response) const;

 private:
  // Sends the regions, joined where they may be, and fills in sequence and sums.
  absl::Status Send(std::vector<DeviceRegion> regions, bool join, std::shared_ptr<const void> keep,
                    wire::LoadResponse& response) const;
};

}  // namespace fq
