#include "server/rpc/fetch_link.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "kernels/base/status_macros.h"
#include "server/page_layout.h"
#include "server/rpc/to_calls.h"
#include "server/rpc/validate_peers.h"
#include "server/to_bytes.h"

namespace fq {
namespace {

constexpr uint64_t kWindowBytes = uint64_t{64} << 20;
constexpr absl::Duration kLookUp = absl::Milliseconds(20);  // whether anybody still waits

uint64_t WholeUnits(uint64_t bytes) {
  return (bytes + kChunkUnitBytes - 1) / kChunkUnitBytes * kChunkUnitBytes;
}

PeerId ToPeerId(const std::string& bytes) {
  PeerId id{};
  std::memcpy(id.data(), bytes.data(), id.size());
  return id;
}

// Where each block begins in the window, as far as the wire wants to know.
std::vector<uint64_t> OffsetsOf(absl::Span<const IncomingBlock> blocks) {
  std::vector<uint64_t> offsets;
  uint64_t used = 0;
  for (const IncomingBlock& block : blocks) {
    offsets.push_back(WholeUnits(used));
    used = FetchLink::EndOf(block, used);
  }
  return offsets;
}

// Both extents of a block that is coming, if they are as long as their room.
absl::Status AddRegions(const IncomingBlock& block, uint64_t primary_bytes,
                        uint64_t refinement_bytes, std::vector<DeviceRegion>& regions) {
  const auto primary = block.room.primary(), refinement = block.room.refinement();
  if (primary.size() != primary_bytes || refinement.size() != refinement_bytes) {
    return absl::DataLossError(absl::StrCat("the other node sends a block of ", primary_bytes,
                                            " and ", refinement_bytes, " bytes, expected ",
                                            primary.size(), " and ", refinement.size()));
  }
  regions.push_back({primary.data(), primary_bytes});
  if (refinement_bytes > 0) regions.push_back({refinement.data(), refinement_bytes});
  return absl::OkStatus();
}

}  // namespace

bool FetchLink::Possible(Node& node, const RemoteSession& remote) {
  if (node.peer_links() == nullptr || !node.tiers().has_device()) return false;
  if (!remote.opened().has_peer_transport()) return false;
  return remote.opened().peer_transport().device_uuid() != ToBytes(node.device()->info().uuid);
}

absl::StatusOr<std::unique_ptr<FetchLink>> FetchLink::Open(Node* node, const SlabSpace& space,
                                                           RemoteSession* remote) {
  std::unique_ptr<FetchLink> link(new FetchLink(node, space, remote));
  const SlabShape& shape = space.shape();
  link->window_bytes_ = std::min(remote->opened().peer_transport().max_window_bytes(),
                                 std::max(kWindowBytes, WholeUnits(DenseBlockBytes(shape)))) /
                        kChunkUnitBytes * kChunkUnitBytes;
  FQ_ASSIGN_OR_RETURN(const auto opened,
                      remote->OpenLink(ToBytes(node->device()->info().uuid), link->window_bytes_));
  link->segment_id_ = opened.segment_id();
  const PeerLimits& limits = node->peer_links()->limits();
  const Milliseconds timeout =
      std::min(limits.max_timeout, Milliseconds(std::max(1u, opened.timeout_ms())));
  FQ_ASSIGN_OR_RETURN(link->joined_,
                      node->peer_links()->JoinOther(ToPeerId(opened.down_id()),
                                                    ToPeerId(opened.up_id()), timeout, shape));
  return link;
}

FetchLink::~FetchLink() {
  if (joined_.link != nullptr) joined_.link->Break(PeerLinkEnd::kClosed, "the fetch is over");
}

uint64_t FetchLink::EndOf(const IncomingBlock& block, uint64_t used_bytes) {
  return WholeUnits(used_bytes) +
         ExtentsBytes(block.room.primary().size(), block.room.refinement().size());
}

absl::StatusOr<std::vector<BlockOutcome>> FetchLink::Load(const CallContext& call,
                                                          const Piece& piece) {
  FQ_ASSIGN_OR_RETURN(const wire::LoadResponse reply,
                      remote_->LoadOverLink(piece.lease, piece.first, piece.floor, segment_id_,
                                            OffsetsOf(piece.blocks)));
  std::vector<DeviceRegion> regions;
  std::vector<size_t> block_of;  // of each region
  for (size_t i = 0; i < piece.blocks.size(); ++i) {
    const int at = static_cast<int>(i);
    piece.blocks[i].damaged = reply.statuses(at) != wire::BLOCK_STATUS_OK;
    if (piece.blocks[i].damaged) continue;
    FQ_RETURN_IF_ERROR(
        AddRegions(piece.blocks[i], reply.sizes(at), reply.refinement_sizes(at), regions));
    block_of.resize(regions.size(), i);
  }
  if (!regions.empty()) {
    FQ_RETURN_IF_ERROR(Receive(call, reply.peer_sequence(), regions));
    FQ_ASSIGN_OR_RETURN(const std::vector<uint64_t> sums,
                        node_->page_path().Sums(call, this, std::move(regions)));
    for (size_t r = 0; r < sums.size(); ++r) {
      if (sums[r] != reply.peer_sums(static_cast<int>(r))) piece.blocks[block_of[r]].damaged = true;
    }
  }
  FQ_ASSIGN_OR_RETURN(auto outcomes, node_->page_path().PublishIncoming(
                                         call, space_, piece.blocks, *joined_.scratch, piece.pins));
  for (size_t i = 0; i < outcomes.size(); ++i) {
    const wire::BlockStatus status = reply.statuses(static_cast<int>(i));
    if (status != wire::BLOCK_STATUS_OK) outcomes[i] = NotDelivered(status);
  }
  return outcomes;
}

// Returns only when nothing writes to the regions any more, whatever happens.
absl::Status FetchLink::Receive(const CallContext& call, uint64_t sequence,
                                absl::Span<const DeviceRegion> regions) {
  PeerRegions to;
  for (const DeviceRegion& region : regions) to.push_back({region.data, region.bytes});
  absl::Notification arrived;
  absl::Status status;
  FQ_RETURN_IF_ERROR(
      joined_.link->Receive(sequence, std::move(to), [&](const absl::Status& outcome) {
        status = outcome;
        arrived.Notify();
      }));
  while (!arrived.WaitForNotificationWithTimeout(kLookUp)) {
    const absl::Status wanted = call.Check();
    if (!wanted.ok()) joined_.link->Break(PeerLinkEnd::kCall, std::string(wanted.message()));
  }
  return status;
}

}  // namespace fq
