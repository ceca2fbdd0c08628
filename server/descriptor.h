// What must agree before two engines may share pages, and its fingerprint (kv_cache.proto,
// NamespaceDescriptor). Plain values; pure functions, any thread.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "kernels/params.h"

namespace fq {

struct Descriptor {
  std::string model;
  std::string weights_digest;
  uint32_t layers = 0;
  uint32_t kv_heads = 0;
  uint32_t head_size = 0;
  DType dtype = DType::kBF16;
  std::string rope;
  std::string codec_set_id;  // 32 bytes or empty
  std::map<std::string, std::string> extra;
};

using Fingerprint = std::array<uint8_t, 32>;

Fingerprint FingerprintOf(const Descriptor& descriptor);

// FailedPrecondition names the first field that differs and both values.
absl::Status CheckSame(const Descriptor& known, const Descriptor& asked);

// The number that the wire gives an element type.
constexpr int WireNumber(DType dtype) { return static_cast<int>(dtype) + 1; }

}  // namespace fq
