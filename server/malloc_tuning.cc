#include "server/malloc_tuning.h"

#include <malloc.h>

#include <climits>

#include "absl/strings/str_cat.h"

namespace fq {
namespace {

constexpr int kMmapThresholdBytes = 32 << 20;  // the most that glibc takes
constexpr int kTrimThresholdBytes = INT_MAX;   // mallopt takes an int

}  // namespace

absl::Status TuneMalloc() {
  if (mallopt(M_MMAP_THRESHOLD, kMmapThresholdBytes) == 1 &&
      mallopt(M_TRIM_THRESHOLD, kTrimThresholdBytes) == 1) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat("mallopt refuses an mmap threshold of ",
                                                    kMmapThresholdBytes,
                                                    " bytes; large messages will be slow"));
}

}  // namespace fq
