// Host memory that a GPU copies to and from at full speed.
#pragma once

#include <memory>

#include "kernels/memory/memory_space.h"

namespace fq {

// Readable and writable by the host; pinned for all devices of the process as it is committed, in
// granules of 16 MiB. Commit fails where the system pins no more.
std::unique_ptr<MemorySpace> CreatePinnedSpace();

}  // namespace fq
