// The sum that tells whether pages have come over a peer link as they were sent
// (proto/flashquant/v1/kv_cache.proto, "Sums"). Any order of addition, modulo 2^64.
#pragma once

#include <cstdint>

#include "kernels/base/host_device.h"

namespace fq {

// What word `index` of a region adds. Another word adds another term: the factor is odd.
FQ_HD constexpr uint64_t WordSumTerm(uint64_t index, uint64_t word) {
  return word * ((2 * index + 1) * 0x9E3779B97F4A7C15u);
}

}  // namespace fq
