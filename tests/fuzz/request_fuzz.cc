// The checks of requests on any message that protobuf can parse, and of the call socket's packets.
// What passes is then held to the promise the node relies on: every element of every page lies
// inside the memory that was named.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include <google/protobuf/stubs/logging.h>

#include "server/page_layout.h"
#include "server/rpc/call_packet.h"
#include "server/rpc/to_calls.h"
#include "server/rpc/validate_blocks.h"
#include "server/rpc/validate_peers.h"
#include "server/rpc/validate_session.h"

namespace {

using fq::wire::AttendRequest;
using fq::wire::LoadRequest;
using fq::wire::LookupRequest;
using fq::wire::OpenPeerLinkRequest;
using fq::wire::ReleaseRequest;
using fq::wire::SessionRequest;
using fq::wire::StoreRequest;

constexpr size_t kLeasedBlocks = 4;
constexpr uint64_t kSegmentBytes = 1 << 20, kWindowBytes = 4 << 20;

void Require(bool holds) {
  if (!holds) std::abort();
}

fq::SlabShape ShapeOf(uint8_t choice) {
  constexpr uint16_t kHeadSizes[] = {64, 96, 128, 256};
  fq::SlabShape shape;
  shape.layer_begin = choice & 1;
  shape.layer_end = static_cast<uint16_t>(shape.layer_begin + 1 + (choice >> 1) % 2);
  shape.head_end = static_cast<uint16_t>(1 + (choice >> 2) % 2);
  shape.head_size = kHeadSizes[(choice >> 3) % 4];
  shape.dtype = static_cast<fq::DType>((choice >> 5) % 3);
  return shape;
}

// The last byte of the farthest element of K (or V), counted without overflow.
unsigned __int128 FarthestByte(const fq::PageLayout& l, const fq::SlabShape& shape, bool v) {
  using Wide = unsigned __int128;
  const Wide last_token = l.tokens_per_chunk - 1;
  const Wide last_channel = shape.head_size - 1;
  return Wide{static_cast<uint64_t>(shape.layers() - 1)} * l.layer_stride +
         Wide{static_cast<uint64_t>(shape.heads() - 1)} * l.head_stride +
         (v ? l.v_offset : l.k_offset) + last_token * (v ? l.v_token_stride : l.k_token_stride) +
         last_channel * (v ? l.v_channel_stride : l.k_channel_stride) +
         static_cast<uint64_t>(fq::ElementBytes(shape.dtype)) - 1;
}

void RequireInside(const fq::wire::Pages& message, const fq::SlabShape& shape, uint64_t memory) {
  const fq::PagesAt pages = fq::ToPages(message);
  for (const fq::BlockPlace& place : pages.places) {
    for (uint64_t offset : place.chunk_offsets) {
      Require(offset + FarthestByte(pages.layout, shape, false) < memory);
      Require(offset + FarthestByte(pages.layout, shape, true) < memory);
    }
    const uint32_t rows =
        pages.layout.tokens_per_chunk * static_cast<uint32_t>(place.chunk_offsets.size());
    Require(place.first_token + fq::kBlockTokens <= rows);
    Require(place.chunk_offsets.size() <= fq::kMaxChunks);
  }
}

// What a peer link makes of pages: whole blocks, or extents, within the window.
void CheckPeer(const fq::wire::Pages& message, size_t blocks, const fq::SlabShape& shape) {
  const uint64_t block = fq::DenseBlockBytes(shape), stride = block / shape.layers();
  if (fq::CheckPeerPages(message, blocks, shape, kWindowBytes - (block - stride)).ok()) {
    Require(static_cast<size_t>(message.places_size()) == blocks);
    for (const fq::BlockPlace& place : fq::ToPages(message).places) {
      Require(place.chunk_offsets[0] + block <= kWindowBytes);
    }
  }
  if (fq::CheckExtentPlaces(message, blocks, kWindowBytes).ok()) {
    Require(static_cast<size_t>(message.places_size()) == blocks);
    for (const fq::wire::BlockPlace& place : message.places()) {
      Require(place.chunk_offsets(0) < kWindowBytes);
    }
  }
}

void CheckStore(const uint8_t* data, int size, const fq::SlabShape& shape) {
  StoreRequest request;
  if (!request.ParseFromArray(data, size)) return;
  const uint64_t memory =
      request.pages().segment_id() != 0 ? kSegmentBytes : request.payload().size();
  if (!fq::CheckStore(request, {}).ok()) return;
  const size_t keys = fq::ToKeys(request.keys()).size();
  if (fq::CheckPeerStore(request, keys).ok()) CheckPeer(request.pages(), keys, shape);
  if (!fq::CheckPages(request.pages(), keys, shape, memory).ok()) return;
  RequireInside(request.pages(), shape, memory);
  Require(static_cast<size_t>(request.pages().places_size()) == keys);
  fq::ToStoreCall(request);
}

void CheckLoad(const uint8_t* data, int size, const fq::SlabShape& shape) {
  LoadRequest request;
  if (!request.ParseFromArray(data, size)) return;
  if (!fq::CheckLoad(request, shape, kLeasedBlocks, {}).ok()) return;
  Require(uint64_t{request.first_block()} + request.block_count() <= kLeasedBlocks);
  CheckPeer(request.pages(), request.block_count(), shape);
  if (!fq::CheckPages(request.pages(), request.block_count(), shape, kSegmentBytes).ok()) return;
  RequireInside(request.pages(), shape, kSegmentBytes);
}

void CheckPacket(absl::string_view packet) {
  const auto call = fq::ParseCallPacket(packet, packet.size());
  if (!call.ok()) return;
  Require(call->message.size() + 16 == packet.size());
  Require(call->message.data() + call->message.size() == packet.data() + packet.size());
  Require(!call->timeout || call->timeout->count() > 0);
}

template <typename Request, typename Check>
void Parsed(const uint8_t* data, int size, Check&& check) {
  Request request;
  if (request.ParseFromArray(data, size)) check(request);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static google::protobuf::LogHandler* const silent = google::protobuf::SetLogHandler(nullptr);
  static_cast<void>(silent);
  if (size < 2 || size > (1 << 20)) return 0;
  const fq::SlabShape shape = ShapeOf(data[1]);
  const uint8_t which = data[0] % 8;
  const uint8_t* body = data + 2;
  const int bytes = static_cast<int>(size - 2);
  if (which == 0) CheckStore(body, bytes, shape);
  if (which == 1) CheckLoad(body, bytes, shape);
  if (which == 2) {
    Parsed<LookupRequest>(body, bytes, [](auto& r) { fq::CheckLookup(r, {}).IgnoreError(); });
  }
  if (which == 3) {
    Parsed<AttendRequest>(body, bytes, [&](auto& r) {
      if (!fq::CheckAttend(r, shape, kLeasedBlocks, {}).ok()) return;
      Require(r.layer() >= shape.layer_begin && r.layer() < shape.layer_end);
    });
  }
  if (which == 4) {
    Parsed<ReleaseRequest>(body, bytes, [](auto& r) { fq::CheckRelease(r, 64).IgnoreError(); });
  }
  if (which == 5) {
    Parsed<SessionRequest>(body, bytes, [](auto& r) {
      if (fq::CheckSessionRequest(r).ok())
        Require(r.range().layer_end() <= r.namespace_descriptor().layers());
    });
  }
  if (which == 6) CheckPacket({reinterpret_cast<const char*>(body), size - 2});
  if (which == 7) {
    Parsed<OpenPeerLinkRequest>(body, bytes, [&](auto& r) {
      if (fq::CheckOpenPeerLink(r, shape, {}).ok())
        Require(r.window_bytes() >= fq::DenseBlockBytes(shape));
    });
  }
  return 0;
}
