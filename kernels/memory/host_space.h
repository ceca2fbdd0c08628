// Memory of the host, paged in as it is touched.
#pragma once

#include <memory>

#include "kernels/memory/memory_space.h"

namespace fq {

// Granules are the system's memory pages; Commit never fails: the caller keeps the limit.
std::unique_ptr<MemorySpace> CreateHostSpace();

}  // namespace fq
