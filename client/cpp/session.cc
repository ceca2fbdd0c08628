#include "client/cpp/session.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/payload_message.h"
#include "client/cpp/proto_mapping.h"
#include "client/cpp/session_keeper.h"
#include "kernels/base/status_macros.h"

namespace fq::client {
namespace {

std::string Bytes(const std::array<uint8_t, 16>& id) { return std::string(id.begin(), id.end()); }

std::string Bytes(absl::Span<const float> values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
}

std::vector<float> Floats(const std::string& bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

wire::StoreRequest ToWire(const StoreCall& call, const SessionInfo& info, uint32_t segment_id) {
  wire::StoreRequest request;
  request.set_session_id(Bytes(info.session_id));
  request.set_profile(static_cast<wire::Profile>(call.profile));
  request.set_first_block_index(call.first_block_index);
  request.set_keys(ToBytes(call.keys));
  request.set_preceding_keys(ToBytes(call.preceding_keys));
  ToWire(call.layout, call.places, *request.mutable_pages());
  request.mutable_pages()->set_segment_id(segment_id);
  return request;
}

wire::LoadRequest ToWire(const LoadCall& call, const SessionInfo& info, uint32_t segment_id) {
  wire::LoadRequest request;
  request.set_session_id(Bytes(info.session_id));
  request.set_lease_id(Bytes(call.lease));
  request.set_first_block(call.first_block);
  request.set_block_count(call.block_count);
  request.set_min_profile(static_cast<wire::Profile>(call.floor));
  if (segment_id != 0) {
    ToWire(call.layout, call.places, *request.mutable_pages());
    request.mutable_pages()->set_segment_id(segment_id);
  }
  return request;
}

// Where each block of an inline reply goes: block i that is OK to its place in `destination`.
absl::StatusOr<std::vector<absl::Span<std::byte>>> Scatter(const LoadCall& call,
                                                           const wire::LoadResponse& response,
                                                           uint64_t payload_bytes) {
  std::vector<absl::Span<std::byte>> places;
  if (call.block_count == 0 || response.statuses_size() != static_cast<int>(call.block_count) ||
      response.sizes_size() != response.statuses_size()) {
    return absl::DataLossError("the node answered for another number of blocks");
  }
  const uint64_t block_bytes = call.destination.size() / call.block_count;
  uint64_t sum_bytes = 0;
  for (int i = 0; i < response.sizes_size(); ++i) {
    const bool ok = response.statuses(i) == wire::BLOCK_STATUS_OK;
    if (response.sizes(i) != (ok ? block_bytes : 0)) {
      return absl::DataLossError(absl::StrCat("block ", i, " of the node's reply has ",
                                              response.sizes(i), " bytes, the place for it ",
                                              block_bytes));
    }
    sum_bytes += response.sizes(i);
    if (ok) places.push_back(call.destination.subspan(i * block_bytes, block_bytes));
  }
  if (sum_bytes == payload_bytes) return places;
  return absl::DataLossError(absl::StrCat("the node's reply has ", payload_bytes,
                                          " payload bytes, its blocks add up to ", sum_bytes));
}

absl::StatusOr<std::vector<BlockStatus>> ParseLoaded(const LoadCall& call,
                                                     grpc::ByteBuffer& reply) {
  wire::LoadResponse response;
  const bool into_segment = call.segment != nullptr;
  FQ_RETURN_IF_ERROR(ParseWithPayload(
      reply, response,
      [&](uint64_t payload_bytes) -> absl::StatusOr<std::vector<absl::Span<std::byte>>> {
        if (!into_segment) return Scatter(call, response, payload_bytes);
        if (payload_bytes == 0) return std::vector<absl::Span<std::byte>>();
        return absl::DataLossError("the node sent a payload nobody asked for");
      }));
  return StatusesFromWire(response, call.block_count);
}

// Sends a request of this session that uses no segment.
template <typename Response, typename Request>
absl::StatusOr<Response> Ask(Session::Keeper& keeper, const SessionInfo& info, const char* method,
                             std::optional<CallKind> kind, Request& request, absl::Time deadline) {
  request.set_session_id(Bytes(info.session_id));
  auto reply = keeper.Call(info, method, kind, Serialize(request), deadline);
  FQ_RETURN_IF_ERROR(keeper.Judge(reply.status(), info, nullptr, {}));
  Response response;
  FQ_RETURN_IF_ERROR(Parse(*reply, response));
  return response;
}

}  // namespace

Session::Session(std::unique_ptr<Keeper> keeper) : keeper_(std::move(keeper)) {}
Session::~Session() = default;
const SessionSpec& Session::spec() const { return keeper_->spec(); }
SessionInfo Session::info() const { return keeper_->info(); }

KeyChain Session::Chain(absl::string_view salt) const {
  const SessionInfo info = keeper_->info();
  return KeyChain(info.fingerprint, info.tenant, salt);
}

absl::StatusOr<std::vector<BlockStatus>> Session::Store(const StoreCall& call) {
  const absl::Time deadline = keeper_->link().DeadlineOf(call.deadline);
  FQ_ASSIGN_OR_RETURN(const SessionInfo info, keeper_->Get(deadline));
  FQ_ASSIGN_OR_RETURN(const SegmentUse use, keeper_->Use(info, call.segment.get(), deadline));
  const wire::StoreRequest request = ToWire(call, info, use.id);
  auto reply = keeper_->Call(
      info, "/flashquant.v1.KvCache/Store",
      call.segment != nullptr ? std::optional(CallKind::kStore) : std::nullopt,
      call.segment != nullptr ? Serialize(request) : SerializeWithPayload(request, call.payload),
      deadline);
  FQ_RETURN_IF_ERROR(keeper_->Judge(reply.status(), info, call.segment.get(), use));
  wire::StoreResponse response;
  FQ_RETURN_IF_ERROR(Parse(*reply, response));
  return StatusesFromWire(response, call.keys.size());
}

Match Session::Lookup(const LookupCall& call) {
  const absl::Time deadline = keeper_->link().DeadlineOf(call.deadline);
  const auto info = keeper_->Get(deadline);
  if (!info.ok()) return MissBecause(info.status());
  wire::LookupRequest request;
  request.set_keys(ToBytes(call.keys));
  request.set_min_profile(static_cast<wire::Profile>(call.floor));
  request.set_no_lease(call.lease == LookupCall::Lease::kNone);
  const auto response = Ask<wire::LookupResponse>(*keeper_, *info, "/flashquant.v1.KvCache/Lookup",
                                                  CallKind::kLookup, request, deadline);
  return response.ok() ? FromWire(*response) : MissBecause(response.status());
}

namespace {

absl::StatusOr<std::vector<BlockStatus>> DoLoad(Session::Keeper& keeper, const LoadCall& call) {
  const absl::Time deadline = keeper.link().DeadlineOf(call.deadline);
  FQ_ASSIGN_OR_RETURN(const SessionInfo info, keeper.Get(deadline));
  FQ_ASSIGN_OR_RETURN(const SegmentUse use, keeper.Use(info, call.segment.get(), deadline));
  auto reply = keeper.Call(info, "/flashquant.v1.KvCache/Load",
                           call.segment != nullptr ? std::optional(CallKind::kLoad) : std::nullopt,
                           Serialize(ToWire(call, info, use.id)), deadline);
  FQ_RETURN_IF_ERROR(keeper.Judge(reply.status(), info, call.segment.get(), use));
  return ParseLoaded(call, *reply);
}

}  // namespace

Loaded Session::Load(const LoadCall& call) {
  auto statuses = DoLoad(*keeper_, call);
  if (statuses.ok()) return Loaded{absl::OkStatus(), *std::move(statuses)};
  return Loaded{statuses.status(), std::vector<BlockStatus>(call.block_count, BlockStatus::kMiss)};
}

absl::StatusOr<Fetched> Session::Fetch(const FetchCall& call) {
  const absl::Time deadline = keeper_->link().DeadlineOf(call.deadline);
  FQ_ASSIGN_OR_RETURN(const SessionInfo info, keeper_->Get(deadline));
  wire::FetchRequest request;
  request.set_node(call.node);
  request.set_keys(ToBytes(call.keys));
  request.set_min_profile(static_cast<wire::Profile>(call.floor));
  FQ_ASSIGN_OR_RETURN(const auto response,
                      Ask<wire::FetchResponse>(*keeper_, info, "/flashquant.v1.KvCache/Fetch",
                                               std::nullopt, request, deadline));
  FQ_ASSIGN_OR_RETURN(auto statuses, StatusesFromWire(response, call.keys.size()));
  return Fetched{
      std::move(statuses),
      absl::Status(static_cast<absl::StatusCode>(response.stopped_code()), response.stopped())};
}

absl::StatusOr<Attended> Session::Attend(const AttendCall& call) {
  const absl::Time deadline = keeper_->link().DeadlineOf(call.deadline);
  FQ_ASSIGN_OR_RETURN(const SessionInfo info, keeper_->Get(deadline));
  wire::AttendRequest request;
  request.set_lease_id(Bytes(call.lease));
  request.set_layer(call.layer);
  request.set_block_count(call.block_count);
  request.set_q_heads_per_kv_head(call.q_heads_per_kv_head);
  request.set_scale(call.scale);
  request.set_q(Bytes(call.q));
  FQ_ASSIGN_OR_RETURN(const auto response,
                      Ask<wire::AttendResponse>(*keeper_, info, "/flashquant.v1.KvCache/Attend",
                                                std::nullopt, request, deadline));
  if (response.out().size() == call.q.size() * sizeof(float)) {
    return Attended{Floats(response.out()), Floats(response.lse())};
  }
  return absl::DataLossError(absl::StrCat("the node's out has ", response.out().size(),
                                          " bytes, q has ", call.q.size() * sizeof(float)));
}

absl::StatusOr<uint32_t> Session::Release(absl::Span<const LeaseId> leases, CallDeadline wanted) {
  const absl::Time deadline = keeper_->link().DeadlineOf(wanted);
  FQ_ASSIGN_OR_RETURN(const SessionInfo info, keeper_->Get(deadline));
  wire::ReleaseRequest request;
  for (const LeaseId& lease : leases) request.add_lease_ids(Bytes(lease));
  FQ_ASSIGN_OR_RETURN(const auto response,
                      Ask<wire::ReleaseResponse>(*keeper_, info, "/flashquant.v1.KvCache/Release",
                                                 CallKind::kRelease, request, deadline));
  return response.released();
}

absl::Status Session::Forget(const Segment& segment, CallDeadline deadline) {
  return keeper_->Forget(keeper_->info(), segment, keeper_->link().DeadlineOf(deadline));
}

}  // namespace fq::client
