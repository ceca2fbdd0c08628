#include "server/rpc/session_stream.h"

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/rpc/identity.h"
#include "server/rpc/status.h"
#include "server/rpc/to_calls.h"
#include "server/rpc/validate_session.h"
#include "server/segment_path.h"
#include "server/to_bytes.h"

namespace fq {

SessionStream::SessionStream(Node* node, grpc::CallbackServerContext* context)
    : node_(node), context_(context) {
  StartRead(&request_);
}

void SessionStream::OnReadDone(bool ok) {
  if (!ok) return End(absl::OkStatus());  // half-closed, or gone
  if (session_ == nullptr) {
    absl::Status status = Open();
    if (!status.ok()) return End(status);
    StartWrite(&response_);
  }
  StartRead(&request_);
}

void SessionStream::OnCancel() { End(absl::CancelledError("the stream was cancelled")); }

void SessionStream::OnDone() {
  if (session_ != nullptr) {
    node_->sessions().Close(session_->id);
    LogEvent("session_closed");
  }
  delete this;
}

absl::Status SessionStream::Open() {
  FQ_RETURN_IF_ERROR(node_->CheckAccepting());
  FQ_RETURN_IF_ERROR(CheckSessionRequest(request_));
  FQ_ASSIGN_OR_RETURN(Caller caller, CallerOf(*context_, *node_));
  address_ = caller.address;
  FQ_ASSIGN_OR_RETURN(const std::string tenant,
                      TenantOf(caller, request_.tenant(), node_->options().trusted_nodes));
  if (!request_.tenant().empty()) {  // who comes to fetch names nothing that is not there
    FQ_RETURN_IF_ERROR(node_->namespaces().List(tenant, request_.namespace_name()).status());
  }
  FQ_ASSIGN_OR_RETURN(auto space,
                      node_->namespaces().Open(tenant, request_.namespace_name(),
                                               ToDescriptor(request_.namespace_descriptor()),
                                               ToRange(request_.range())));
  FQ_ASSIGN_OR_RETURN(session_, node_->sessions().Open(std::move(space), caller.tenant));
  client_name_ = request_.client_name();
  FillResponse(tenant, caller.local);
  LogEvent("session_opened");
  return absl::OkStatus();
}

void SessionStream::FillResponse(const std::string& tenant, bool local) {
  const SlabSpace& space = *session_->space;
  const Options& options = node_->options();
  response_.set_session_id(ToBytes(session_->id));
  response_.set_namespace_fingerprint(ToBytes(space.fingerprint));
  response_.set_tenant(tenant);
  if (local) {
    response_.set_segment_socket(SegmentSocketPath(options.socket));
    response_.set_call_socket(CallSocketPath(options.socket));
  }
  if (local && node_->tiers().has_device()) {
    const DeviceInfo& device = node_->device()->info();
    response_.mutable_device()->set_uuid(ToBytes(device.uuid));
    response_.mutable_device()->set_name(device.name);
  }
  if (node_->peer_links() != nullptr && node_->tiers().has_device()) {
    const PeerLinks& links = *node_->peer_links();
    wire::PeerTransport& peers = *response_.mutable_peer_transport();
    peers.set_nccl_version(links.version());
    peers.set_device_uuid(ToBytes(node_->device()->info().uuid));
    peers.set_max_window_bytes(links.limits().max_window_bytes);
    peers.set_max_timeout_ms(static_cast<uint32_t>(links.limits().max_timeout.count()));
  }
  response_.set_max_blocks_per_call(options.max_blocks_per_call);
  response_.set_max_inline_bytes(options.max_inline_bytes);
  response_.set_lease_ms(options.lease_ms);
  response_.add_profiles(wire::PROFILE_EXACT);
  if (space.codec_set != nullptr) {
    response_.add_profiles(wire::PROFILE_NEAR_LOSSLESS);
    response_.add_profiles(wire::PROFILE_COMPACT);
    response_.set_calibrated_tokens(static_cast<uint32_t>(space.codec_set->calibrated_tokens()));
  }
  response_.add_profiles(wire::PROFILE_UNIVERSAL);
}

void SessionStream::LogEvent(const char* event) const {
  const SlabSpace& space = *session_->space;
  node_->log().Write(LogLevel::kInfo, event,
                     {{"tenant", space.tenant},
                      {"caller", session_->owner},  // another one: a node that fetches
                      {"namespace", space.namespace_name},
                      {"client", client_name_},
                      {"peer", address_}});
}

void SessionStream::End(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  if (ended_) return;
  ended_ = true;
  if (!status.ok() && session_ == nullptr) {
    node_->log().Write(LogLevel::kWarning, "session_refused",
                       {{"peer", address_}, {"reason", std::string(status.message())}});
  }
  node_->metrics().Add(Metric::kRequests, {"Session", absl::StatusCodeToString(status.code())}, 1);
  Finish(ToGrpc(status));
}

}  // namespace fq
