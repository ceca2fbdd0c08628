// Checks of what concerns peer links (kv_cache.proto, "Peer links"). As validate_blocks.h.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/slab.h"
#include "server/peer_limits.h"
#include "server/rpc/wire.h"

namespace fq {

// Everything but the session.
absl::Status CheckOpenPeerLink(const wire::OpenPeerLinkRequest& request, const SlabShape& shape,
                               const PeerLimits& limits);

// Pages in the window of a peer link; `layer_bytes` as of CheckDevicePages.
absl::Status CheckPeerPages(const wire::Pages& pages, size_t blocks, const SlabShape& shape,
                            uint64_t layer_bytes);

// Bytes that the extents of an encoded block take there: the refinement begins at a multiple of 64.
inline uint64_t ExtentsBytes(uint64_t primary_bytes, uint64_t refinement_bytes) {
  return (primary_bytes + 63) / 64 * 64 + refinement_bytes;
}

// Places of encoded blocks there; that extents end within the window is checked when they are
// known.
absl::Status CheckExtentPlaces(const wire::Pages& pages, size_t blocks, uint64_t window_bytes);

// Sequence and sums of a Store of so many blocks out of a window.
absl::Status CheckPeerStore(const wire::StoreRequest& request, size_t blocks);

}  // namespace fq
