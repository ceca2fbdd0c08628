#include "server/rpc/peer_calls.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/page_layout.h"
#include "server/rpc/fill.h"
#include "server/rpc/to_calls.h"
#include "server/rpc/validate_blocks.h"
#include "server/rpc/validate_peers.h"
#include "server/to_bytes.h"

namespace fq {
namespace {

// Regions as one operation sends and receives them: what begins where the one before ends joins it.
std::vector<PeerRegion> Runs(absl::Span<const DeviceRegion> regions, bool join) {
  std::vector<PeerRegion> runs;
  for (const DeviceRegion& region : regions) {
    if (join && !runs.empty() && runs.back().data + runs.back().bytes == region.data) {
      runs.back().bytes += region.bytes;
    } else {
      runs.push_back({region.data, region.bytes});
    }
  }
  return runs;
}

CallerPages PagesInWindow(const Session& session, const PeerSegment& segment,
                          const wire::Pages& message) {
  CallerPages pages;
  pages.session = &session;
  pages.device = segment.window.get();
  pages.peer = true;
  pages.pages = ToPages(message);
  return pages;
}

// The blocks' dense pages in the window.
std::vector<DeviceRegion> RegionsOf(const PagesAt& pages, const SlabShape& shape,
                                    const PeerSegment& segment) {
  std::vector<DeviceRegion> regions;
  for (const BlockPlace& place : pages.places) {
    regions.push_back({segment.begin + place.chunk_offsets[0], DenseBlockBytes(shape)});
  }
  return regions;
}

std::string Hex(absl::string_view bytes) { return absl::BytesToHexString(bytes); }

absl::Status CheckOtherGpu(Node& node, const std::string& uuid) {
  const std::string own = ToBytes(node.device()->info().uuid);
  if (uuid != own) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("device_uuid = ", Hex(uuid), ": the node's GPU is ", Hex(own),
                   " too: register device memory on the segment socket instead"));
}

}  // namespace

absl::Status DoOpenPeerLink(Node& node, Session& session, const wire::OpenPeerLinkRequest& request,
                            wire::OpenPeerLinkResponse& response) {
  FQ_RETURN_IF_ERROR(node.CheckAccepting());
  PeerLinks* const links = node.peer_links();
  if (links == nullptr || !node.tiers().has_device()) {
    return absl::FailedPreconditionError("the node offers no peer links (--nccl, --device)");
  }
  const SlabShape& shape = session.space->shape();
  FQ_RETURN_IF_ERROR(CheckOpenPeerLink(request, shape, links->limits()));
  FQ_RETURN_IF_ERROR(CheckOtherGpu(node, request.device_uuid()));
  const Milliseconds timeout =
      request.timeout_ms() == 0 ? links->limits().max_timeout : Milliseconds(request.timeout_ms());
  FQ_ASSIGN_OR_RETURN(const PeerLinks::Opened opened,
                      links->Open(request.window_bytes(), timeout, shape));
  const absl::StatusOr<uint32_t> id = session.segments.Register(opened.segment);
  if (!id.ok()) {
    opened.segment.link->Break(PeerLinkEnd::kClosed, "it was not registered");
    return id.status();
  }
  response.set_segment_id(*id);
  response.set_down_id(ToBytes(opened.down));
  response.set_up_id(ToBytes(opened.up));
  response.set_timeout_ms(static_cast<uint32_t>(timeout.count()));
  response.set_max_ctas(links->limits().max_ctas);
  return absl::OkStatus();
}

absl::Status DoClosePeerLink(Session& session, const wire::ClosePeerLinkRequest& request) {
  if (session.segments.FindPeer(request.segment_id()).link == nullptr) {
    return absl::NotFoundError(absl::StrCat("segment_id = ", request.segment_id(),
                                            ": the session has no peer link of that id"));
  }
  return session.segments.Unregister(request.segment_id());
}

absl::Status PeerStore::Begin(std::shared_ptr<Session> session, const RequestLimits& limits,
                              CallRunner::Resume resume) {
  session_ = std::move(session);
  segment_ = session_->segments.FindPeer(request_->pages().segment_id());
  if (segment_.link == nullptr) {
    return BadField("peer_sequence", request_->peer_sequence(),
                    absl::StrCat("pages.segment_id = ", request_->pages().segment_id(),
                                 " is no peer link of the session"));
  }
  absl::Status status = Receive(limits, std::move(resume));
  if (!status.ok()) segment_.link->Break(PeerLinkEnd::kCall, std::string(status.message()));
  return status;
}

absl::Status PeerStore::Receive(const RequestLimits& limits, CallRunner::Resume resume) {
  FQ_RETURN_IF_ERROR(node_->CheckAccepting());
  FQ_RETURN_IF_ERROR(CheckStore(*request_, limits));
  call_ = ToStoreCall(*request_);
  const SlabShape& shape = session_->space->shape();
  FQ_RETURN_IF_ERROR(CheckPeerStore(*request_, call_.keys.size()));
  FQ_RETURN_IF_ERROR(
      CheckPeerPages(request_->pages(), call_.keys.size(), shape, segment_.window->layer_bytes()));
  call_.source = PagesInWindow(*session_, segment_, request_->pages());
  return segment_.link->Receive(request_->peer_sequence(),
                                Runs(RegionsOf(call_.source.pages, shape, segment_), true),
                                std::move(resume));
}

absl::StatusOr<std::vector<BlockOutcome>> PeerStore::End(const CallContext& context) {
  auto outcomes = StoreWhole(context);
  if (!outcomes.ok()) {
    segment_.link->Break(PeerLinkEnd::kCall, std::string(outcomes.status().message()));
  }
  return outcomes;
}

absl::StatusOr<std::vector<BlockOutcome>> PeerStore::StoreWhole(const CallContext& context) {
  const SlabShape& shape = session_->space->shape();
  FQ_ASSIGN_OR_RETURN(const std::vector<uint64_t> sums,
                      node_->page_path().Sums(context, session_.get(),
                                              RegionsOf(call_.source.pages, shape, segment_)));
  for (size_t i = 0; i < sums.size(); ++i) {
    call_.damaged.push_back(sums[i] != request_->peer_sums(static_cast<int>(i)));
  }
  return node_->page_path().StoreBlocks(context, *session_->space, call_);
}

absl::Status PeerLoad::Decoded(const wire::Pages& message, wire::LoadResponse& response) const {
  const SlabShape& shape = session.space->shape();
  FQ_RETURN_IF_ERROR(
      CheckPeerPages(message, blocks.block_count, shape, segment.window->layer_bytes()));
  const CallerPages target = PagesInWindow(session, segment, message);
  FQ_ASSIGN_OR_RETURN(const auto outcomes,
                      node->page_path().Load(context, *session.space, blocks, target));
  FillStatuses(outcomes, response);
  std::vector<DeviceRegion> regions = RegionsOf(target.pages, shape, segment);
  size_t kept = 0;
  for (size_t i = 0; i < outcomes.size(); ++i) {
    if (outcomes[i] == BlockOutcome::kOk) regions[kept++] = regions[i];
  }
  regions.resize(kept);
  return Send(std::move(regions), true, segment.window, response);
}

absl::Status PeerLoad::Encoded(const wire::Pages& message, wire::LoadResponse& response) const {
  FQ_RETURN_IF_ERROR(CheckExtentPlaces(message, blocks.block_count, segment.bytes));
  for (int i = 0; i < message.places_size(); ++i) {
    const Pin& pin = PinAt(blocks, static_cast<size_t>(i));
    const uint64_t bytes = ExtentsBytes(pin.primary().size(), pin.refinement().size());
    const uint64_t offset = message.places(i).chunk_offsets(0);
    if (bytes <= segment.bytes && offset <= segment.bytes - bytes) continue;
    return BadField(absl::StrCat("pages.places[", i, "].chunk_offsets[0]"), offset,
                    absl::StrCat("extents of ", bytes, " bytes do not fit there, the window has ",
                                 segment.bytes));
  }
  FQ_ASSIGN_OR_RETURN(DeviceExtents found,
                      node->page_path().LoadExtents(context, *session.space, blocks, &session));
  FillStatuses(found.outcomes, response);
  std::vector<DeviceRegion> regions;
  for (const std::vector<DeviceRegion>& extents : found.extents) {
    response.add_sizes(extents.empty() ? 0 : extents[0].bytes);
    response.add_refinement_sizes(extents.size() < 2 ? 0 : extents[1].bytes);
    regions.insert(regions.end(), extents.begin(), extents.end());
  }
  struct Keep {
    std::shared_ptr<const Lease> lease;
    std::shared_ptr<const void> copies;
  };
  return Send(std::move(regions), false, std::make_shared<Keep>(Keep{lease, std::move(found.keep)}),
              response);
}

absl::Status PeerLoad::Send(std::vector<DeviceRegion> regions, bool join,
                            std::shared_ptr<const void> keep, wire::LoadResponse& response) const {
  if (regions.empty()) return absl::OkStatus();
  std::vector<PeerRegion> runs = Runs(regions, join);
  FQ_ASSIGN_OR_RETURN(const std::vector<uint64_t> sums,
                      node->page_path().Sums(context, &session, std::move(regions)));
  FQ_ASSIGN_OR_RETURN(const uint64_t sequence,
                      segment.link->Send(std::move(runs), std::move(keep)));
  response.set_peer_sequence(sequence);
  response.mutable_peer_sums()->Add(sums.begin(), sums.end());
  return absl::OkStatus();
}

}  // namespace fq
