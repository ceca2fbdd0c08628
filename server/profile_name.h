// Names of profiles in metrics, logs and replies. Any thread.
#pragma once

#include "kernels/slab.h"

namespace fq {

// "exact", "near-lossless", "compact", "universal".
inline const char* ProfileName(Profile profile) {
  switch (profile) {
    case Profile::kExact:
      return "exact";
    case Profile::kNearLossless:
      return "near-lossless";
    case Profile::kCompact:
      return "compact";
    case Profile::kUniversal:
      return "universal";
  }
  return "unknown";
}

}  // namespace fq
