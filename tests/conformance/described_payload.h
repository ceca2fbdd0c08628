// Bytes that say where they belong: each 8-byte word names the slab, its version and its own
// offset, so that a byte of another slab, another version or another place is told apart. Used by
// the tier suite and by everything that stresses a tier.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"

namespace fq::conformance {

struct Description {
  uint32_t slab = 0;     // at most 24 bits
  uint16_t version = 0;  // of what was published under one key
};

inline uint64_t WordAt(Description d, size_t word) {
  return (uint64_t{d.slab} << 40) | (uint64_t{d.version} << 24) | (word & 0xffffff);
}

inline void Describe(Description d, absl::Span<std::byte> bytes) {
  for (size_t at = 0; at < bytes.size(); at += 8) {
    const uint64_t word = WordAt(d, at / 8);
    std::memcpy(bytes.data() + at, &word, std::min<size_t>(8, bytes.size() - at));
  }
}

// Empty when every word is the described one, else what was found where.
inline std::string Mismatch(Description d, absl::Span<const std::byte> bytes) {
  for (size_t at = 0; at < bytes.size(); at += 8) {
    const uint64_t want = WordAt(d, at / 8);
    uint64_t got = want;
    std::memcpy(&got, bytes.data() + at, std::min<size_t>(8, bytes.size() - at));
    if (got == want) continue;
    return absl::StrCat("byte ", at, ": ", absl::Hex(got), ", want ", absl::Hex(want));
  }
  return "";
}

// The version that the first word of a slab of at least 8 bytes names.
inline uint16_t VersionOf(absl::Span<const std::byte> bytes) {
  uint64_t word = 0;
  std::memcpy(&word, bytes.data(), sizeof(word));
  return static_cast<uint16_t>(word >> 24);
}

}  // namespace fq::conformance
