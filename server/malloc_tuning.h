// glibc returns every large block to the kernel by default, which makes large gRPC messages ten
// times slower (RELIABILITY.md, "Measured"). Called once, by main.
#pragma once

#include "absl/status/status.h"

namespace fq {

// Keeps blocks up to 32 MiB on the heap and the heap mapped. FailedPrecondition when malloc
// refuses.
absl::Status TuneMalloc();

}  // namespace fq
