// A peer link to the node that a fetch asks: its slabs go from its GPU to ours as they are
// (kv_cache.proto, "Peer links"; we are the worker). One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/call_context.h"
#include "server/node.h"
#include "server/peers/remote_node.h"
#include "server/rpc/wire.h"

namespace fq {

class FetchLink {
 public:
  // Whether the two nodes could have one.
  static bool Possible(Node& node, const RemoteSession& remote);

  // Keeps the pointers. FailedPrecondition, ResourceExhausted, Unavailable: one of the two cannot.
  static absl::StatusOr<std::unique_ptr<FetchLink>> Open(Node* node, const SlabSpace& space,
                                                         RemoteSession* remote);
  ~FetchLink();  // ends it

  uint64_t window_bytes() const { return window_bytes_; }  // extents of one Load fit in there
  // Of a block behind `used_bytes` of others in a Load.
  static uint64_t EndOf(const IncomingBlock& block, uint64_t used_bytes);

  struct Piece {
    std::string lease;
    uint32_t first = 0;  // of the chain
    wire::Profile floor = wire::PROFILE_UNSPECIFIED;
    absl::Span<IncomingBlock> blocks;  // consecutive ones
    absl::Span<Pin> pins;              // [blocks]
  };
  // Loads, checks and publishes. After an error the link is of no more use, and nothing of the
  // piece is published; the rooms are nobody's again.
  absl::StatusOr<std::vector<BlockOutcome>> Load(const CallContext& call, const Piece& piece);

 private:
  FetchLink(Node* node, const SlabSpace& space, RemoteSession* remote)
      : node_(node), space_(space), remote_(remote) {}
  absl::Status Receive(const CallContext& call, uint64_t sequence,
                       absl::Span<const DeviceRegion> regions);

  Node* const node_;
  const SlabSpace& space_;
  RemoteSession* const remote_;
  uint64_t window_bytes_ = 0;
  uint32_t segment_id_ = 0;  // at the other node
  PeerLinks::Joined joined_;
};

}  // namespace fq
