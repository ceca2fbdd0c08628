// A share of a GPU's multiprocessors, so that what runs there leaves the others alone.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "absl/status/statusor.h"

namespace fq {

// Owns the driver's green context. Immutable; any thread. Outlives its streams.
class SmShare {
 public:
  virtual ~SmShare() = default;
  virtual int multiprocessors() const = 0;
  // Non-blocking; destroyed with cudaStreamDestroy.
  virtual absl::StatusOr<cudaStream_t> CreateStream(int priority) const = 0;
};

// At least `percent` (1..99) of the multiprocessors of the device that is current in the calling
// thread, up to the next size that the driver can part. Unimplemented: the driver has no green
// contexts (it needs CUDA 12.4); Internal: it cannot part this device.
absl::StatusOr<std::unique_ptr<const SmShare>> CreateSmShare(int percent);

}  // namespace fq
