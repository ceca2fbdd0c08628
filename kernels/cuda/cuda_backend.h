// The CUDA backend for pages and rows in host memory: what SlabCodec drives. Engines whose keys and
// values live on the device call encode_pages.h and decode_pages.h with their own pointers.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace fq {

// Works on the device that is current in the calling thread at Create, on a stream of its own. Each
// call copies to the device, computes, copies back and returns when it is done; calls from several
// threads run one after the other. The coders of every codec set it has met stay on the device.
// Failed CUDA calls become absl::Status with the name of the call (ResourceExhausted without
// memory, else Internal); what the tasks' outputs hold is undefined then. Attend runs on the CPU:
// the pages are in host memory, and reading them there costs less than moving them.
// `with_lists`: see CoderTables.
absl::StatusOr<std::unique_ptr<const Backend>> CreateCudaBackend(bool with_lists = true);

}  // namespace fq
