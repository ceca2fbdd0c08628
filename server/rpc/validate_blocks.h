// Checks of the calls on blocks: Store, Lookup, Load, Attend, Release. Every field of the message
// is checked before anything is allocated for it. Pure functions, any thread. InvalidArgument names
// the field and both values; ResourceExhausted names the limit.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/slab.h"
#include "server/rpc/validate.h"
#include "server/rpc/wire.h"

namespace fq {

// `memory_bytes` is the size of the segment, or of the inline payload.
absl::Status CheckPages(const wire::Pages& pages, size_t blocks, const SlabShape& shape,
                        uint64_t memory_bytes);

// The same for a segment of device memory; `layer_bytes` is what every layer has behind its offset.
absl::Status CheckDevicePages(const wire::Pages& pages, size_t blocks, const SlabShape& shape,
                              uint64_t layer_bytes);

// Everything but the pages, which are checked once their segment is known.
absl::Status CheckStore(const wire::StoreRequest& request, const RequestLimits& limits);
absl::Status CheckLookup(const wire::LookupRequest& request, const RequestLimits& limits);
// `leased_blocks` is the length of the lease. Pages are checked by CheckPages once their segment is
// known.
absl::Status CheckLoad(const wire::LoadRequest& request, const SlabShape& shape,
                       size_t leased_blocks, const RequestLimits& limits);
absl::Status CheckAttend(const wire::AttendRequest& request, const SlabShape& shape,
                         size_t leased_blocks, const RequestLimits& limits);
absl::Status CheckFetch(const wire::FetchRequest& request, const RequestLimits& limits);
absl::Status CheckRelease(const wire::ReleaseRequest& request, size_t max_leases);

}  // namespace fq
