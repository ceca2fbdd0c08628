// Ids, fingerprints and the like as messages carry them. Any thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace fq {

template <size_t kBytes>
std::string ToBytes(const std::array<uint8_t, kBytes>& id) {
  return std::string(id.begin(), id.end());
}

}  // namespace fq
