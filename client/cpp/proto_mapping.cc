#include "client/cpp/proto_mapping.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace fq::client {
namespace {

template <size_t kBytes>
absl::Status CopyId(const char* field, const std::string& from, std::array<uint8_t, kBytes>& to) {
  if (from.size() != kBytes) {
    return absl::DataLossError(
        absl::StrCat("the node's ", field, " has ", from.size(), " bytes, must have ", kBytes));
  }
  std::copy(from.begin(), from.end(), to.begin());
  return absl::OkStatus();
}

Loss FromWire(const wire::NamespaceInfo::Loss& loss) {
  return {loss.perplexity_excess_percent(),
          loss.standard_error_percent(),
          loss.kl_divergence(),
          loss.bits_per_value(),
          loss.top1_agreement_percent(),
          loss.tokens(),
          loss.text()};
}

void ToWire(const Descriptor& from, wire::NamespaceDescriptor& to) {
  to.set_model(from.model);
  to.set_weights_digest(from.weights_digest);
  to.set_layers(from.layers);
  to.set_kv_heads(from.kv_heads);
  to.set_head_size(from.head_size);
  to.set_dtype(static_cast<wire::DType>(from.dtype));
  to.set_rope(from.rope);
  to.set_codec_set_id(from.codec_set_id);
  for (const auto& [key, value] : from.extra) (*to.mutable_extra())[key] = value;
}

const char* StateName(wire::StatusResponse::State state) {
  switch (state) {
    case wire::StatusResponse::STATE_SERVING:
      return "serving";
    case wire::StatusResponse::STATE_DRAINING:
      return "draining";
    default:
      return "unspecified";
  }
}

}  // namespace

std::string ToBytes(absl::Span<const BlockKey> keys) {
  return std::string(reinterpret_cast<const char*>(keys.data()), keys.size() * sizeof(BlockKey));
}

wire::SessionRequest ToWire(const SessionSpec& spec, const std::string& client_name) {
  wire::SessionRequest request;
  request.set_namespace_name(spec.namespace_name);
  ToWire(spec.descriptor, *request.mutable_namespace_descriptor());
  request.mutable_range()->set_layer_begin(spec.range.layer_begin);
  request.mutable_range()->set_layer_end(spec.range.layer_end);
  request.mutable_range()->set_head_begin(spec.range.head_begin);
  request.mutable_range()->set_head_end(spec.range.head_end);
  request.set_client_name(client_name);
  return request;
}

void ToWire(const PageLayout& layout, const std::vector<BlockPlace>& places, wire::Pages& pages) {
  wire::PageLayout& to = *pages.mutable_layout();
  to.set_tokens_per_chunk(layout.tokens_per_chunk);
  to.set_layer_stride(layout.layer_stride);
  to.set_head_stride(layout.head_stride);
  to.set_k_offset(layout.k_offset);
  to.set_k_token_stride(layout.k_token_stride);
  to.set_k_channel_stride(layout.k_channel_stride);
  to.set_v_offset(layout.v_offset);
  to.set_v_token_stride(layout.v_token_stride);
  to.set_v_channel_stride(layout.v_channel_stride);
  for (const BlockPlace& place : places) {
    wire::BlockPlace& one = *pages.add_places();
    for (uint64_t offset : place.chunk_offsets) one.add_chunk_offsets(offset);
    one.set_first_token(place.first_token);
  }
}

Descriptor FromWire(const wire::NamespaceDescriptor& from) {
  Descriptor to;
  to.model = from.model();
  to.weights_digest = from.weights_digest();
  to.layers = from.layers();
  to.kv_heads = from.kv_heads();
  to.head_size = from.head_size();
  to.dtype = static_cast<DType>(from.dtype());
  to.rope = from.rope();
  to.codec_set_id = from.codec_set_id();
  to.extra.insert(from.extra().begin(), from.extra().end());
  return to;
}

absl::StatusOr<SessionInfo> FromWire(const wire::SessionResponse& response) {
  SessionInfo info;
  FQ_RETURN_IF_ERROR(CopyId("session_id", response.session_id(), info.session_id));
  FQ_RETURN_IF_ERROR(
      CopyId("namespace_fingerprint", response.namespace_fingerprint(), info.fingerprint));
  info.tenant = response.tenant();
  info.segment_socket = response.segment_socket();
  info.call_socket = response.call_socket();
  info.max_blocks_per_call = response.max_blocks_per_call();
  info.max_inline_bytes = response.max_inline_bytes();
  info.lease_ms = response.lease_ms();
  for (int profile : response.profiles()) info.profiles.push_back(static_cast<Profile>(profile));
  info.calibrated_tokens = response.calibrated_tokens();
  return info;
}

Match MissBecause(absl::Status why) {
  Match match;
  match.node = std::move(why);
  return match;
}

Match FromWire(const wire::LookupResponse& response) {
  Match match;
  match.matched_blocks = response.matched_blocks();
  match.usable_blocks = response.usable_blocks();
  if (!response.lease_id().empty()) {
    match.node = CopyId("lease_id", response.lease_id(), match.lease);
    if (!match.node.ok()) return MissBecause(match.node);
  }
  for (int profile : response.profiles()) match.profiles.push_back(static_cast<Profile>(profile));
  match.stored_bytes.assign(response.stored_bytes().begin(), response.stored_bytes().end());
  match.load_bytes = response.load_bytes();
  match.predicted_load_ms = response.predicted_load_ms();
  return match;
}

NodeStatus FromWire(const wire::StatusResponse& response) {
  NodeStatus status;
  status.version = response.version();
  status.build = response.build();
  status.uptime_seconds = response.uptime_seconds();
  status.state = StateName(response.state());
  status.host_capacity_bytes = response.host_capacity_bytes();
  status.host_used_bytes = response.host_used_bytes();
  status.blocks = response.blocks();
  status.sessions = response.sessions();
  status.leases = response.leases();
  status.counters.insert(response.counters().begin(), response.counters().end());
  return status;
}

NamespaceInfo FromWire(const wire::NamespaceInfo& from) {
  NamespaceInfo to;
  to.name = from.name();
  to.descriptor = FromWire(from.namespace_descriptor());
  if (from.fingerprint().size() == to.fingerprint.size()) {
    std::copy(from.fingerprint().begin(), from.fingerprint().end(), to.fingerprint.begin());
  }
  to.blocks = from.blocks();
  to.stored_bytes = from.stored_bytes();
  to.raw_bytes = from.raw_bytes();
  if (from.has_compact()) to.compact = FromWire(from.compact());
  if (from.has_near_lossless()) to.near_lossless = FromWire(from.near_lossless());
  to.calibrated_tokens = from.calibrated_tokens();
  to.blocks_by_profile.insert(from.blocks_by_profile().begin(), from.blocks_by_profile().end());
  for (const auto& entry : from.loss_by_length()) {
    to.loss_by_length.push_back({entry.profile(), FromWire(entry.loss())});
  }
  to.has_expected_error = from.has_expected_error();
  for (const auto& one : from.quality()) {
    to.quality.push_back({one.profile(), one.samples(), one.error_ratio(), one.drift()});
  }
  return to;
}

}  // namespace fq::client
