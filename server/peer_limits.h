// What peer links may take. Plain values.
#pragma once

#include <cstdint>

#include "server/clock.h"

namespace fq {

struct PeerLimits {
  uint32_t max_links = 16;
  uint64_t window_bytes = uint64_t{8} << 30;      // of all links together
  uint64_t max_window_bytes = uint64_t{8} << 30;  // of one
  Milliseconds max_timeout{5'000};
  uint32_t max_ctas = 24;
};

}  // namespace fq
