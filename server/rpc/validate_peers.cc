#include "server/rpc/validate_peers.h"

#include <string>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "kernels/device.h"
#include "server/page_layout.h"
#include "server/rpc/validate.h"
#include "server/rpc/validate_blocks.h"

namespace fq {
namespace {

absl::Status CheckIs(absl::string_view field, uint64_t value, uint64_t expected) {
  if (value == expected) return absl::OkStatus();
  return BadField(absl::StrCat("pages.layout.", field), value,
                  absl::StrCat("must be ", expected, " over a peer link"));
}

// [layer][K|V][64][head][head_size]; every layer has its own begin.
absl::Status CheckPeerLayout(const wire::PageLayout& l, const SlabShape& shape) {
  const uint64_t element = static_cast<uint64_t>(ElementBytes(shape.dtype));
  const uint64_t head = element * static_cast<uint64_t>(shape.head_size);
  const uint64_t row = head * static_cast<uint64_t>(shape.heads());
  FQ_RETURN_IF_ERROR(CheckIs("tokens_per_chunk", l.tokens_per_chunk(), kBlockTokens));
  FQ_RETURN_IF_ERROR(CheckIs("layer_stride", l.layer_stride(), 0));
  FQ_RETURN_IF_ERROR(CheckIs("head_stride", l.head_stride(), head));
  FQ_RETURN_IF_ERROR(CheckIs("k_offset", l.k_offset(), 0));
  FQ_RETURN_IF_ERROR(CheckIs("k_token_stride", l.k_token_stride(), row));
  FQ_RETURN_IF_ERROR(CheckIs("k_channel_stride", l.k_channel_stride(), element));
  FQ_RETURN_IF_ERROR(CheckIs("v_offset", l.v_offset(), kBlockTokens * row));
  FQ_RETURN_IF_ERROR(CheckIs("v_token_stride", l.v_token_stride(), row));
  return CheckIs("v_channel_stride", l.v_channel_stride(), element);
}

}  // namespace

absl::Status CheckOpenPeerLink(const wire::OpenPeerLinkRequest& request, const SlabShape& shape,
                               const PeerLimits& limits) {
  FQ_RETURN_IF_ERROR(CheckLength("device_uuid", request.device_uuid().size(),
                                 std::tuple_size_v<DeviceUuid>, std::tuple_size_v<DeviceUuid>));
  if (request.window_bytes() > limits.max_window_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat("window_bytes = ", request.window_bytes(),
                                                     ": at most ", limits.max_window_bytes,
                                                     " (peer-window-bytes, max-segment-bytes)"));
  }
  if (request.window_bytes() % kChunkUnitBytes != 0 ||
      request.window_bytes() < DenseBlockBytes(shape)) {
    return BadField("window_bytes", request.window_bytes(),
                    absl::StrCat("must be a multiple of ", kChunkUnitBytes,
                                 " and hold a block, which has ", DenseBlockBytes(shape)));
  }
  return CheckRange("timeout_ms", request.timeout_ms(), 0,
                    static_cast<uint64_t>(limits.max_timeout.count()));
}

absl::Status CheckPeerPages(const wire::Pages& pages, size_t blocks, const SlabShape& shape,
                            uint64_t layer_bytes) {
  if (!pages.has_layout()) return absl::InvalidArgumentError("pages.layout: required");
  FQ_RETURN_IF_ERROR(CheckPeerLayout(pages.layout(), shape));
  return CheckDevicePages(pages, blocks, shape, layer_bytes);
}

absl::Status CheckExtentPlaces(const wire::Pages& pages, size_t blocks, uint64_t window_bytes) {
  if (pages.has_layout()) {
    return absl::InvalidArgumentError("encoded = true: pages.layout must be unset");
  }
  if (static_cast<size_t>(pages.places_size()) != blocks) {
    return absl::InvalidArgumentError(absl::StrCat("pages.places has ", pages.places_size(),
                                                   ": must have one for each of ", blocks,
                                                   " blocks"));
  }
  for (int i = 0; i < pages.places_size(); ++i) {
    const wire::BlockPlace& place = pages.places(i);
    const std::string name = absl::StrCat("pages.places[", i, "]");
    if (place.chunk_offsets_size() != 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ".chunk_offsets has ", place.chunk_offsets_size(), ": must have 1"));
    }
    if (place.first_token() != 0) {
      return BadField(absl::StrCat(name, ".first_token"), place.first_token(), "must be 0");
    }
    const uint64_t offset = place.chunk_offsets(0);
    if (offset % kChunkUnitBytes == 0 && offset < window_bytes) continue;
    return BadField(
        absl::StrCat(name, ".chunk_offsets[0]"), offset,
        absl::StrCat("must be a multiple of ", kChunkUnitBytes, " below ", window_bytes));
  }
  return absl::OkStatus();
}

absl::Status CheckPeerStore(const wire::StoreRequest& request, size_t blocks) {
  if (request.peer_sequence() == 0) {
    return BadField("peer_sequence", 0, "must be 1 or more over a peer link");
  }
  if (static_cast<size_t>(request.peer_sums_size()) == blocks) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("peer_sums has ", request.peer_sums_size(),
                                                 ": must have one for each of ", blocks,
                                                 " blocks"));
}

}  // namespace fq
