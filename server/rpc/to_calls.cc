#include "server/rpc/to_calls.h"

#include <cstring>

#include "server/rpc/validate.h"

namespace fq {

Descriptor ToDescriptor(const wire::NamespaceDescriptor& message) {
  Descriptor d;
  d.model = message.model();
  d.weights_digest = message.weights_digest();
  d.layers = message.layers();
  d.kv_heads = message.kv_heads();
  d.head_size = message.head_size();
  d.dtype = static_cast<DType>(message.dtype() - wire::DTYPE_F16);
  d.rope = message.rope();
  d.codec_set_id = message.codec_set_id();
  d.extra.insert(message.extra().begin(), message.extra().end());
  return d;
}

void FillDescriptor(const Descriptor& d, wire::NamespaceDescriptor& message) {
  message.set_model(d.model);
  message.set_weights_digest(d.weights_digest);
  message.set_layers(d.layers);
  message.set_kv_heads(d.kv_heads);
  message.set_head_size(d.head_size);
  message.set_dtype(static_cast<wire::DType>(WireNumber(d.dtype)));
  message.set_rope(d.rope);
  message.set_codec_set_id(d.codec_set_id);
  for (const auto& [key, value] : d.extra) (*message.mutable_extra())[key] = value;
}

Range ToRange(const wire::SlabRange& message) {
  return {message.layer_begin(), message.layer_end(), message.head_begin(), message.head_end()};
}

PageLayout ToLayout(const wire::PageLayout& message) {
  PageLayout layout;
  layout.tokens_per_chunk = message.tokens_per_chunk();
  layout.layer_stride = message.layer_stride();
  layout.head_stride = message.head_stride();
  layout.k_offset = message.k_offset();
  layout.k_token_stride = message.k_token_stride();
  layout.k_channel_stride = message.k_channel_stride();
  layout.v_offset = message.v_offset();
  layout.v_token_stride = message.v_token_stride();
  layout.v_channel_stride = message.v_channel_stride();
  return layout;
}

PagesAt ToPages(const wire::Pages& message) {
  PagesAt pages{ToLayout(message.layout()), {}};
  pages.places.reserve(static_cast<size_t>(message.places_size()));
  for (const wire::BlockPlace& place : message.places()) {
    pages.places.push_back(
        {{place.chunk_offsets().begin(), place.chunk_offsets().end()}, place.first_token()});
  }
  return pages;
}

std::vector<BlockKey> ToKeys(absl::string_view bytes) {
  std::vector<BlockKey> keys(bytes.size() / kKeyBytes);
  if (!keys.empty()) std::memcpy(keys.data(), bytes.data(), keys.size() * kKeyBytes);
  return keys;
}

Profile ToFloor(wire::Profile min_profile) {
  return min_profile == wire::PROFILE_UNSPECIFIED ? Profile::kCompact
                                                  : static_cast<Profile>(min_profile);
}

BlockOutcome NotDelivered(wire::BlockStatus status) {
  return status == wire::BLOCK_STATUS_BELOW_FLOOR ? BlockOutcome::kBelowFloor : BlockOutcome::kMiss;
}

StoreCall ToStoreCall(const wire::StoreRequest& request) {
  StoreCall call;
  call.profile = static_cast<Profile>(request.profile());
  call.first_block_index = request.first_block_index();
  call.keys = ToKeys(request.keys());
  call.preceding_keys = ToKeys(request.preceding_keys());
  return call;
}

}  // namespace fq
