// Memory of a GPU by the driver's virtual memory management: all of it is taken at once, in
// granules that are mapped where they are needed and that other processes can map too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/memory/memory_space.h"

namespace fq {

// Ready for kernels and copies of its device, on any stream; not readable by the host. A range that
// is taken back must not be in use by queued work. Outlives its reservations' users. Commit makes
// the device current in the calling thread, and may be called for different granules at once.
class VmmSpace : public MemorySpace {
 public:
  virtual size_t granules() const = 0;
  virtual size_t free_granules() const = 0;  // that are behind no address

  // A new file descriptor, the caller's, of the granule behind `begin`; another process imports it
  // with cuMemImportFromShareableHandle. InvalidArgument: no granule begins there.
  virtual absl::StatusOr<int> Export(const std::byte* begin) const = 0;
};

// Takes `bytes` (down to a whole number of granules, at least one) on device `device`, which
// becomes current in the calling thread. The granule is the largest of at most 32 MiB of which
// there are at least 256. InvalidArgument: less than one granule. ResourceExhausted names what is
// free. Unimplemented, Internal: no driver, or one that cannot.
absl::StatusOr<std::unique_ptr<VmmSpace>> CreateVmmSpace(int device, uint64_t bytes);

}  // namespace fq
