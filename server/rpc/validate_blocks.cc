#include "server/rpc/validate_blocks.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/status_macros.h"
#include "kernels/device.h"
#include "server/page_layout.h"
#include "server/rpc/to_calls.h"

namespace fq {
namespace {

// Chunks are numbered in 31 bits there.
constexpr uint64_t kMaxDeviceBytes = kChunkUnitBytes << 31;

constexpr size_t kNodeBytesMax = 512;

absl::Status CheckStride(absl::string_view field, uint64_t bytes, uint64_t unit, bool steps) {
  const std::string name = absl::StrCat("pages.layout.", field);
  if (bytes % unit != 0) {
    return BadField(name, bytes, absl::StrCat("must be a multiple of ", unit, " bytes"));
  }
  if (steps && bytes == 0) return BadField(name, bytes, "must not be 0: elements would coincide");
  return absl::OkStatus();
}

// Layers of a segment of device memory have offsets of their own instead of a stride.
absl::Status CheckLayout(const wire::PageLayout& l, const SlabShape& shape, bool on_device) {
  const uint64_t element = static_cast<uint64_t>(ElementBytes(shape.dtype));
  FQ_RETURN_IF_ERROR(
      CheckOneOf("pages.layout.tokens_per_chunk", l.tokens_per_chunk(), {8, 16, 32, 64, 128, 256}));
  FQ_RETURN_IF_ERROR(
      CheckStride("layer_stride", l.layer_stride(), element, shape.layers() > 1 && !on_device));
  FQ_RETURN_IF_ERROR(CheckStride("head_stride", l.head_stride(), element, shape.heads() > 1));
  FQ_RETURN_IF_ERROR(CheckStride("k_offset", l.k_offset(), element, false));
  FQ_RETURN_IF_ERROR(CheckStride("k_token_stride", l.k_token_stride(), element, true));
  FQ_RETURN_IF_ERROR(CheckStride("k_channel_stride", l.k_channel_stride(), element, true));
  FQ_RETURN_IF_ERROR(CheckStride("v_offset", l.v_offset(), element, false));
  FQ_RETURN_IF_ERROR(CheckStride("v_token_stride", l.v_token_stride(), element, true));
  return CheckStride("v_channel_stride", l.v_channel_stride(), element, true);
}

// What the GPU's kernels need beside CheckLayout: rows of whole 16-byte words, K and V alike.
absl::Status CheckDeviceLayout(const wire::PageLayout& l, const SlabShape& shape) {
  constexpr uint64_t kRowAlignment = 16;
  const uint64_t element = static_cast<uint64_t>(ElementBytes(shape.dtype));
  auto check = [](absl::string_view field, uint64_t bytes, uint64_t expected) -> absl::Status {
    if (bytes == expected) return absl::OkStatus();
    return BadField(absl::StrCat("pages.layout.", field), bytes,
                    absl::StrCat("must be ", expected, " in device memory"));
  };
  FQ_RETURN_IF_ERROR(check("layer_stride", l.layer_stride(), 0));
  FQ_RETURN_IF_ERROR(check("v_token_stride", l.v_token_stride(), l.k_token_stride()));
  FQ_RETURN_IF_ERROR(check("k_channel_stride", l.k_channel_stride(), element));
  FQ_RETURN_IF_ERROR(check("v_channel_stride", l.v_channel_stride(), element));
  FQ_RETURN_IF_ERROR(CheckStride("head_stride", l.head_stride(), kRowAlignment, false));
  FQ_RETURN_IF_ERROR(CheckStride("k_offset", l.k_offset(), kRowAlignment, false));
  FQ_RETURN_IF_ERROR(CheckStride("k_token_stride", l.k_token_stride(), kRowAlignment, true));
  return CheckStride("v_offset", l.v_offset(), kRowAlignment, false);
}

struct ChunkBounds {
  uint64_t chunk_bytes = 0;
  uint64_t memory_bytes = 0;
  uint64_t unit_bytes = 0;  // of offsets
};

bool ChunkFits(uint64_t offset, const ChunkBounds& bounds) {
  return offset % bounds.unit_bytes == 0 && bounds.chunk_bytes <= bounds.memory_bytes &&
         offset <= bounds.memory_bytes - bounds.chunk_bytes;
}

// Of one that does not fit.
absl::Status RefuseChunk(absl::string_view field, uint64_t offset, const ChunkBounds& bounds) {
  if (offset % bounds.unit_bytes != 0) {
    return BadField(field, offset,
                    absl::StrCat("must be a multiple of ", bounds.unit_bytes, " bytes"));
  }
  return BadField(field, offset,
                  absl::StrCat("a chunk of ", bounds.chunk_bytes,
                               " bytes does not fit there, the memory has ", bounds.memory_bytes));
}

// Calls have hundreds of places: names are only made of those that are wrong.
absl::Status CheckPlace(int index, const wire::BlockPlace& place, uint32_t tokens_per_chunk,
                        const ChunkBounds& bounds) {
  const auto name = [index] { return absl::StrCat("pages.places[", index, "]"); };
  const uint32_t last = tokens_per_chunk <= kBlockTokens ? 0 : tokens_per_chunk - kBlockTokens;
  if (place.first_token() > last || place.first_token() % kBlockTokens != 0) {
    return BadField(absl::StrCat(name(), ".first_token"), place.first_token(),
                    absl::StrCat("must be a multiple of 64 up to ", last));
  }
  const int chunks = static_cast<int>(ChunksOfBlock(tokens_per_chunk, place.first_token()));
  if (place.chunk_offsets_size() != chunks) {
    return absl::InvalidArgumentError(absl::StrCat(
        name(), ".chunk_offsets has ", place.chunk_offsets_size(), ": must have ", chunks));
  }
  for (int i = 0; i < chunks; ++i) {
    if (ChunkFits(place.chunk_offsets(i), bounds)) continue;
    return RefuseChunk(absl::StrCat(name(), ".chunk_offsets[", i, "]"), place.chunk_offsets(i),
                       bounds);
  }
  return absl::OkStatus();
}

absl::Status CheckPlaces(const wire::Pages& pages, size_t blocks, const SlabShape& shape,
                         ChunkBounds bounds) {
  if (static_cast<size_t>(pages.places_size()) != blocks) {
    return absl::InvalidArgumentError(absl::StrCat("pages.places has ", pages.places_size(),
                                                   ": must have one for each of ", blocks,
                                                   " blocks"));
  }
  FQ_ASSIGN_OR_RETURN(bounds.chunk_bytes, ChunkBytes(ToLayout(pages.layout()), shape));
  for (int i = 0; i < pages.places_size(); ++i) {
    FQ_RETURN_IF_ERROR(CheckPlace(i, pages.places(i), pages.layout().tokens_per_chunk(), bounds));
  }
  return absl::OkStatus();
}

absl::Status CheckStoreProfile(int profile) {
  if (profile >= wire::PROFILE_EXACT && profile <= wire::PROFILE_UNIVERSAL) return absl::OkStatus();
  return BadField("profile", profile,
                  "must be EXACT (1), NEAR_LOSSLESS (2), COMPACT (3) or UNIVERSAL (4)");
}

absl::Status CheckPrecedingKeys(const wire::StoreRequest& request) {
  const size_t bytes = request.preceding_keys().size();
  FQ_RETURN_IF_ERROR(CheckLength("preceding_keys", bytes, 0, 2 * kKeyBytes));
  if (bytes % kKeyBytes != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("preceding_keys has ", bytes, " bytes: must have 32 per block"));
  }
  if (bytes / kKeyBytes <= request.first_block_index()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("preceding_keys has ", bytes / kKeyBytes,
                                                 " keys: first_block_index is ",
                                                 request.first_block_index()));
}

absl::Status CheckPayload(const wire::StoreRequest& request, const RequestLimits& limits) {
  const size_t bytes = request.payload().size();
  if (request.pages().segment_id() != 0 && bytes != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "payload has ", bytes,
        " bytes: must be empty with pages.segment_id = ", request.pages().segment_id()));
  }
  if (bytes <= limits.max_inline_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("payload: ", bytes, " bytes, max-inline-bytes is ", limits.max_inline_bytes));
}

absl::Status CheckLeasedRange(const wire::LoadRequest& request, size_t leased_blocks) {
  const uint64_t end = uint64_t{request.first_block()} + request.block_count();
  if (request.block_count() != 0 && end <= leased_blocks) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "first_block = ", request.first_block(), ", block_count = ", request.block_count(),
      ": must be at least one block within the ", leased_blocks, " leased"));
}

absl::Status CheckInlineLoad(const wire::LoadRequest& request, const SlabShape& shape,
                             const RequestLimits& limits) {
  const uint64_t bytes =
      DenseBlockBytes(shape);  // encoded blocks are checked when their size is known
  if (request.block_count() <= limits.max_inline_bytes / bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("block_count = ", request.block_count(), " of ",
                                                   bytes, " bytes inline: max-inline-bytes is ",
                                                   limits.max_inline_bytes));
}

}  // namespace

absl::Status CheckPages(const wire::Pages& pages, size_t blocks, const SlabShape& shape,
                        uint64_t memory_bytes) {
  if (!pages.has_layout()) return absl::InvalidArgumentError("pages.layout: required");
  FQ_RETURN_IF_ERROR(CheckLayout(pages.layout(), shape, /*on_device=*/false));
  return CheckPlaces(pages, blocks, shape,
                     {0, memory_bytes, static_cast<uint64_t>(ElementBytes(shape.dtype))});
}

absl::Status CheckDevicePages(const wire::Pages& pages, size_t blocks, const SlabShape& shape,
                              uint64_t layer_bytes) {
  if (!pages.has_layout()) return absl::InvalidArgumentError("pages.layout: required");
  FQ_RETURN_IF_ERROR(CheckLayout(pages.layout(), shape, /*on_device=*/true));
  FQ_RETURN_IF_ERROR(CheckDeviceLayout(pages.layout(), shape));
  return CheckPlaces(pages, blocks, shape,
                     {0, std::min(layer_bytes, kMaxDeviceBytes), kChunkUnitBytes});
}

absl::Status CheckStore(const wire::StoreRequest& request, const RequestLimits& limits) {
  FQ_RETURN_IF_ERROR(CheckStoreProfile(request.profile()));
  FQ_RETURN_IF_ERROR(CheckKeys(request.keys(), limits));
  const size_t blocks = request.keys().size() / kKeyBytes;
  FQ_RETURN_IF_ERROR(CheckRange("first_block_index", request.first_block_index(), 0,
                                UINT32_MAX - static_cast<uint32_t>(blocks)));
  FQ_RETURN_IF_ERROR(CheckPrecedingKeys(request));
  if (!request.has_pages()) return absl::InvalidArgumentError("pages: required");
  return CheckPayload(request, limits);
}

absl::Status CheckLookup(const wire::LookupRequest& request, const RequestLimits& limits) {
  FQ_RETURN_IF_ERROR(CheckKeys(request.keys(), limits));
  return CheckFloor(request.min_profile());
}

absl::Status CheckLoad(const wire::LoadRequest& request, const SlabShape& shape,
                       size_t leased_blocks, const RequestLimits& limits) {
  FQ_RETURN_IF_ERROR(CheckFloor(request.min_profile()));
  FQ_RETURN_IF_ERROR(CheckBlockCount("block_count", request.block_count(), limits));
  FQ_RETURN_IF_ERROR(CheckLeasedRange(request, leased_blocks));
  if (!request.has_pages()) {
    return request.encoded() ? absl::OkStatus() : CheckInlineLoad(request, shape, limits);
  }
  if (request.pages().segment_id() != 0) return absl::OkStatus();
  return BadField("pages.segment_id", 0, "leave pages unset for an inline load");
}

absl::Status CheckAttend(const wire::AttendRequest& request, const SlabShape& shape,
                         size_t leased_blocks, const RequestLimits& limits) {
  FQ_RETURN_IF_ERROR(CheckRange("layer", request.layer(), shape.layer_begin, shape.layer_end - 1u));
  FQ_RETURN_IF_ERROR(CheckBlockCount("block_count", request.block_count(), limits));
  FQ_RETURN_IF_ERROR(CheckRange("block_count", request.block_count(), 1, leased_blocks));
  FQ_RETURN_IF_ERROR(
      CheckRange("q_heads_per_kv_head", request.q_heads_per_kv_head(), 1, kMaxQueryHeads));
  if (!std::isfinite(request.scale()) || request.scale() <= 0) {
    return BadField("scale", request.scale(), "must be finite and above 0");
  }
  const size_t floats =
      static_cast<size_t>(shape.heads()) * request.q_heads_per_kv_head() * shape.head_size;
  return CheckLength("q", request.q().size(), floats * sizeof(float), floats * sizeof(float));
}

absl::Status CheckFetch(const wire::FetchRequest& request, const RequestLimits& limits) {
  FQ_RETURN_IF_ERROR(CheckLength("node", request.node().size(), 1, kNodeBytesMax));
  FQ_RETURN_IF_ERROR(CheckKeys(request.keys(), limits));
  return CheckFloor(request.min_profile());
}

absl::Status CheckRelease(const wire::ReleaseRequest& request, size_t max_leases) {
  if (static_cast<size_t>(request.lease_ids_size()) > max_leases) {
    return absl::ResourceExhaustedError(absl::StrCat("lease_ids has ", request.lease_ids_size(),
                                                     ", max-leases-per-session is ", max_leases));
  }
  for (int i = 0; i < request.lease_ids_size(); ++i) {
    FQ_RETURN_IF_ERROR(CheckId(absl::StrCat("lease_ids[", i, "]"), request.lease_ids(i)));
  }
  return absl::OkStatus();
}

}  // namespace fq
