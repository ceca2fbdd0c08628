// The digest of bytes that messages carry: XXH3-128, big-endian (xxHash's canonical form).
#pragma once

#include <xxhash.h>

#include <array>
#include <cstddef>
#include <cstring>

#include "absl/types/span.h"

namespace fq {

using Digest = std::array<char, 16>;

inline Digest DigestOf(absl::Span<const std::byte> bytes) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(bytes.data(), bytes.size()));
  Digest digest;
  static_assert(sizeof(canonical.digest) == sizeof(digest));
  std::memcpy(digest.data(), canonical.digest, digest.size());
  return digest;
}

}  // namespace fq
