// Block keys: the SHA-256 chain of kv_cache.proto ("Keys"). Golden vectors: tests/golden/keys.json.
// Plain values, any thread.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "client/cpp/blocks.h"

namespace fq::client {

using BlockKey = std::array<uint8_t, 32>;
using Fingerprint = std::array<uint8_t, 32>;

Fingerprint FingerprintOf(const Descriptor& descriptor);

// The keys of one prefix, block by block.
class KeyChain {
 public:
  KeyChain(const Fingerprint& fingerprint, absl::string_view tenant, absl::string_view salt);

  // Key of the next block. `tokens`: exactly 64 ids; `extra`: what else decides its contents (LoRA,
  // image hashes), or empty.
  BlockKey Next(absl::Span<const uint32_t> tokens, absl::string_view extra);

  // Key of the last block, or the root.
  const BlockKey& last() const { return last_; }

 private:
  BlockKey last_;
};

// Keys of all whole blocks of `tokens`; the rest of fewer than 64 tokens has none.
std::vector<BlockKey> KeysOf(KeyChain chain, absl::Span<const uint32_t> tokens);

}  // namespace fq::client
