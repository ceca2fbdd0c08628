// What a node says about itself (proto Admin). Plain values.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "client/cpp/blocks.h"
#include "client/cpp/keys.h"

namespace fq::client {

struct NodeStatus {
  std::string version;
  std::string build;
  double uptime_seconds = 0;
  std::string state;  // "serving", "draining"
  uint64_t host_capacity_bytes = 0;
  uint64_t host_used_bytes = 0;
  uint64_t blocks = 0;
  uint64_t sessions = 0;
  uint64_t leases = 0;
  std::map<std::string, double> counters;
};

// What a codec set says it costs, measured when it was calibrated.
struct Loss {
  double perplexity_excess_percent = 0;
  double standard_error_percent = 0;
  double kl_divergence = 0;
  double bits_per_value = 0;
};

struct NamespaceInfo {
  std::string name;
  Descriptor descriptor;
  Fingerprint fingerprint{};
  uint64_t blocks = 0;
  uint64_t stored_bytes = 0;
  uint64_t raw_bytes = 0;
  std::optional<Loss> compact;  // none without a codec set
  std::optional<Loss> near_lossless;
  uint32_t calibrated_tokens = 0;
  std::map<std::string, uint64_t> blocks_by_profile;
};

struct Verified {
  uint64_t blocks = 0;
  uint64_t bytes = 0;
  uint64_t failed = 0;
};

struct Purged {
  uint64_t blocks = 0;
  uint64_t bytes = 0;
};

}  // namespace fq::client
