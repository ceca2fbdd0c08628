#include "server/rpc/kv_cache_calls.h"

#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/rpc/fill.h"
#include "server/rpc/to_calls.h"
#include "server/rpc/validate_blocks.h"
#include "server/rpc/validate_peers.h"
#include "server/to_bytes.h"

namespace fq {
namespace {

// A segment of the session: one of the two. Keeps the mapping for the call.
struct FoundSegment {
  std::shared_ptr<const Segment> host;
  std::shared_ptr<const DeviceSegment> device;
};

absl::StatusOr<FoundSegment> FindSegment(const Session& session, uint32_t id) {
  FoundSegment found{session.segments.Find(id), session.segments.FindDevice(id)};
  if (found.host != nullptr || found.device != nullptr) return found;
  return BadField("pages.segment_id", id, "the session has no segment of that id");
}

// The pages of a message that lie in a segment, checked.
absl::StatusOr<CallerPages> PagesInSegment(const Session& session, const FoundSegment& segment,
                                           const wire::Pages& message, size_t blocks) {
  const SlabShape& shape = session.space->shape();
  CallerPages pages;
  pages.session = &session;
  if (segment.device != nullptr) {
    FQ_RETURN_IF_ERROR(CheckDevicePages(message, blocks, shape, segment.device->layer_bytes()));
    pages.device = segment.device.get();
  } else {
    FQ_RETURN_IF_ERROR(CheckPages(message, blocks, shape, segment.host->memory().size()));
    pages.memory = segment.host->memory();
  }
  pages.pages = ToPages(message);
  return pages;
}

// The same for pages that came with the message. They are only read.
absl::StatusOr<CallerPages> PagesInPayload(const Session& session,
                                           const wire::StoreRequest& request, size_t blocks) {
  const std::string& payload = request.payload();
  FQ_RETURN_IF_ERROR(CheckPages(request.pages(), blocks, session.space->shape(), payload.size()));
  CallerPages pages;
  pages.session = &session;
  pages.in_message = true;
  pages.memory = absl::MakeSpan(reinterpret_cast<std::byte*>(const_cast<char*>(payload.data())),
                                payload.size());
  pages.pages = ToPages(request.pages());
  return pages;
}

absl::StatusOr<std::shared_ptr<const Lease>> FindLease(Session& session, const std::string& id) {
  FQ_RETURN_IF_ERROR(CheckId("lease_id", id));
  return session.leases.Use(ToRandomId(id));
}

LoadReply InlineReply(InlineBlocks blocks) {
  LoadReply reply;
  FillStatuses(blocks.outcomes, reply.head);
  reply.head.mutable_sizes()->Add(blocks.sizes.begin(), blocks.sizes.end());
  reply.head.mutable_refinement_sizes()->Add(blocks.refinement_sizes.begin(),
                                             blocks.refinement_sizes.end());
  reply.head.set_xxh3_128(std::move(blocks.checksums));
  reply.payload = std::move(blocks.payload);
  return reply;
}

void FillLookup(const LookupResult& result, wire::LookupResponse& response) {
  response.set_matched_blocks(static_cast<uint32_t>(result.pins.size()));
  response.set_usable_blocks(result.usable_blocks);
  response.set_load_bytes(result.load_bytes);
  response.set_predicted_load_ms(result.predicted_load_ms);
  for (size_t i = 0; i < result.pins.size(); ++i) {
    response.add_profiles(static_cast<wire::Profile>(result.profiles[i]));
    response.add_stored_bytes(result.pins[i].stored_bytes());
  }
}

std::vector<float> ToFloats(const std::string& bytes) {
  std::vector<float> floats(bytes.size() / sizeof(float));
  std::memcpy(floats.data(), bytes.data(), bytes.size());
  return floats;
}

std::string ToBytes(const std::vector<float>& floats) {
  return std::string(reinterpret_cast<const char*>(floats.data()), floats.size() * sizeof(float));
}

}  // namespace

KvCacheCalls::KvCacheCalls(Node* node)
    : node_(node), limits_{node->options().max_blocks_per_call, node->options().max_inline_bytes} {}

absl::StatusOr<std::shared_ptr<Session>> KvCacheCalls::FindSession(
    const std::string& tenant, const std::string& session_id) const {
  FQ_RETURN_IF_ERROR(CheckId("session_id", session_id));
  FQ_ASSIGN_OR_RETURN(auto session, node_->sessions().Find(ToRandomId(session_id)));
  if (session->owner == tenant) return session;
  return absl::UnauthenticatedError("session_id: no such session");
}

absl::StatusOr<std::shared_ptr<Session>> KvCacheCalls::FindSessionToStore(
    const std::string& tenant, const std::string& session_id) const {
  FQ_ASSIGN_OR_RETURN(auto session, FindSession(tenant, session_id));
  if (!session->read_only()) return session;
  return absl::PermissionDeniedError(
      "session_id: the session reads for another tenant; it may do nothing else");
}

absl::Status KvCacheCalls::Store(const CallContext& call, const std::string& tenant,
                                 const wire::StoreRequest& request,
                                 wire::StoreResponse& response) const {
  FQ_ASSIGN_OR_RETURN(const auto session, FindSessionToStore(tenant, request.session_id()));
  FQ_RETURN_IF_ERROR(node_->CheckAccepting());
  FQ_RETURN_IF_ERROR(CheckStore(request, limits_));
  StoreCall store = ToStoreCall(request);
  const wire::Pages& pages = request.pages();
  FoundSegment segment;
  if (session->segments.FindPeer(pages.segment_id()).link != nullptr) {
    FQ_RETURN_IF_ERROR(CheckPeerStore(request, store.keys.size()));
  }
  if (pages.segment_id() != 0) {
    FQ_ASSIGN_OR_RETURN(segment, FindSegment(*session, pages.segment_id()));
    FQ_ASSIGN_OR_RETURN(store.source, PagesInSegment(*session, segment, pages, store.keys.size()));
  } else {
    FQ_ASSIGN_OR_RETURN(store.source, PagesInPayload(*session, request, store.keys.size()));
  }
  FQ_ASSIGN_OR_RETURN(auto outcomes, node_->page_path().StoreBlocks(call, *session->space, store));
  FillStatuses(outcomes, response);
  return absl::OkStatus();
}

absl::Status KvCacheCalls::BeginStore(const std::string& tenant, const wire::StoreRequest& request,
                                      PeerStore& store, CallRunner::Resume resume) const {
  FQ_ASSIGN_OR_RETURN(auto session, FindSessionToStore(tenant, request.session_id()));
  return store.Begin(std::move(session), limits_, std::move(resume));
}

absl::Status KvCacheCalls::EndStore(const CallContext& call, PeerStore& store,
                                    wire::StoreResponse& response) {
  FQ_ASSIGN_OR_RETURN(const auto outcomes, store.End(call));
  FillStatuses(outcomes, response);
  return absl::OkStatus();
}

absl::Status KvCacheCalls::OpenPeerLink(const std::string& tenant,
                                        const wire::OpenPeerLinkRequest& request,
                                        wire::OpenPeerLinkResponse& response) const {
  FQ_ASSIGN_OR_RETURN(const auto session, FindSession(tenant, request.session_id()));
  return DoOpenPeerLink(*node_, *session, request, response);
}

absl::Status KvCacheCalls::ClosePeerLink(const std::string& tenant,
                                         const wire::ClosePeerLinkRequest& request) const {
  FQ_ASSIGN_OR_RETURN(const auto session, FindSession(tenant, request.session_id()));
  return DoClosePeerLink(*session, request);
}

absl::Status KvCacheCalls::Lookup(const std::string& tenant, const wire::LookupRequest& request,
                                  wire::LookupResponse& response) const {
  FQ_ASSIGN_OR_RETURN(const auto session, FindSession(tenant, request.session_id()));
  FQ_RETURN_IF_ERROR(CheckLookup(request, limits_));
  LookupResult result = node_->page_path().Lookup(
      *session->space, {ToKeys(request.keys()), ToFloor(request.min_profile())});
  FillLookup(result, response);
  if (result.pins.empty() || request.no_lease()) return absl::OkStatus();
  FQ_ASSIGN_OR_RETURN(RandomId lease_id, session->leases.Add(std::move(result.pins)));
  response.set_lease_id(fq::ToBytes(lease_id));
  return absl::OkStatus();
}

absl::Status KvCacheCalls::Load(const CallContext& call, const std::string& tenant,
                                const wire::LoadRequest& request, LoadReply& response) const {
  FQ_ASSIGN_OR_RETURN(const auto session, FindSession(tenant, request.session_id()));
  FQ_ASSIGN_OR_RETURN(auto lease, FindLease(*session, request.lease_id()));
  FQ_RETURN_IF_ERROR(CheckLoad(request, session->space->shape(), lease->pins.size(), limits_));
  const LeasedBlocks blocks{lease.get(), request.first_block(), request.block_count(),
                            ToFloor(request.min_profile())};
  const PeerSegment peer = session->segments.FindPeer(request.pages().segment_id());
  if (peer.link != nullptr) {
    const PeerLoad load{node_, call, *session, peer, lease, blocks};
    return request.encoded() ? load.Encoded(request.pages(), response.head)
                             : load.Decoded(request.pages(), response.head);
  }
  if (request.has_pages() && request.encoded()) {
    return absl::InvalidArgumentError(
        absl::StrCat("encoded = true: pages must be unset, or of a peer link: pages.segment_id is ",
                     request.pages().segment_id()));
  }
  if (request.has_pages()) {
    return DeliverIntoSegment(call, *session, blocks, request.pages(), response.head);
  }
  return LoadIntoReply(call, *session, blocks, request.encoded(), response);
}

absl::Status KvCacheCalls::LoadIntoSegment(const CallContext& call, const std::string& tenant,
                                           const wire::LoadRequest& request,
                                           wire::LoadResponse& response) const {
  if (!request.has_pages()) {
    return absl::InvalidArgumentError("pages: must be set, inline replies come over gRPC only");
  }
  LoadReply reply;
  FQ_RETURN_IF_ERROR(Load(call, tenant, request, reply));
  response = std::move(reply.head);
  return absl::OkStatus();
}

absl::Status KvCacheCalls::DeliverIntoSegment(const CallContext& call, const Session& session,
                                              const LeasedBlocks& blocks, const wire::Pages& pages,
                                              wire::LoadResponse& response) const {
  FQ_ASSIGN_OR_RETURN(const FoundSegment segment, FindSegment(session, pages.segment_id()));
  FQ_ASSIGN_OR_RETURN(const CallerPages target,
                      PagesInSegment(session, segment, pages, blocks.block_count));
  FQ_ASSIGN_OR_RETURN(auto outcomes, node_->page_path().Load(call, *session.space, blocks, target));
  FillStatuses(outcomes, response);
  return absl::OkStatus();
}

absl::Status KvCacheCalls::LoadIntoReply(const CallContext& call, const Session& session,
                                         const LeasedBlocks& blocks, bool encoded,
                                         LoadReply& response) const {
  PagePath& path = node_->page_path();
  if (encoded && EncodedBytes(blocks) > limits_.max_inline_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("block_count = ", blocks.block_count, " of ", EncodedBytes(blocks),
                     " bytes in all: max-inline-bytes is ", limits_.max_inline_bytes));
  }
  FQ_RETURN_IF_ERROR(
      call.hold_reply(encoded ? EncodedBytes(blocks)
                              : blocks.block_count * DenseBlockBytes(session.space->shape())));
  FQ_ASSIGN_OR_RETURN(InlineBlocks result, encoded ? path.LoadEncoded(call, *session.space, blocks)
                                                   : path.LoadInline(call, *session.space, blocks));
  response = InlineReply(std::move(result));
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<Session>> KvCacheCalls::CheckFetch(
    const std::string& tenant, const wire::FetchRequest& request) const {
  FQ_ASSIGN_OR_RETURN(auto session, FindSessionToStore(tenant, request.session_id()));
  FQ_RETURN_IF_ERROR(node_->CheckAccepting());
  FQ_RETURN_IF_ERROR(fq::CheckFetch(request, limits_));
  return session;
}

absl::Status KvCacheCalls::Attend(const CallContext& call, const std::string& tenant,
                                  const wire::AttendRequest& request,
                                  wire::AttendResponse& response) const {
  FQ_ASSIGN_OR_RETURN(const auto session, FindSession(tenant, request.session_id()));
  const SlabShape& shape = session->space->shape();
  FQ_ASSIGN_OR_RETURN(auto lease, FindLease(*session, request.lease_id()));
  FQ_RETURN_IF_ERROR(CheckAttend(request, shape, lease->pins.size(), limits_));
  const std::vector<float> q = ToFloats(request.q());
  std::vector<float> out(q.size()), lse(q.size() / shape.head_size);
  AttendCall attend{lease.get(), request.block_count(), {}};
  attend.params.layer = static_cast<int>(request.layer());
  attend.params.q_heads_per_kv_head = static_cast<int>(request.q_heads_per_kv_head());
  attend.params.scale = request.scale();
  attend.params.q = q.data();
  attend.params.out = out.data();
  attend.params.lse = lse.data();
  FQ_RETURN_IF_ERROR(node_->page_path().Attend(call, *session->space, attend));
  response.set_out(ToBytes(out));
  response.set_lse(ToBytes(lse));
  return absl::OkStatus();
}

absl::Status KvCacheCalls::Release(const std::string& tenant, const wire::ReleaseRequest& request,
                                   wire::ReleaseResponse& response) const {
  FQ_ASSIGN_OR_RETURN(const auto session, FindSession(tenant, request.session_id()));
  FQ_RETURN_IF_ERROR(CheckRelease(request, node_->options().max_leases_per_session));
  uint32_t released = 0;
  for (const std::string& id : request.lease_ids()) {
    if (session->leases.Release(ToRandomId(id))) ++released;
  }
  response.set_released(released);
  response.set_unknown(static_cast<uint32_t>(request.lease_ids_size()) - released);
  return absl::OkStatus();
}

}  // namespace fq
