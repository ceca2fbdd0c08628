// What a node says about itself (proto Admin). Plain values.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

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
  double top1_agreement_percent = 0;
  uint64_t tokens = 0;  // length of the measured documents
  std::string text;     // what it was measured on
};

// The same at another length than the calibrated one.
struct LossAtLength {
  std::string profile;
  Loss loss;
};

// Error of what a node encoded lately, against what the codec set predicts.
struct MeasuredQuality {
  std::string profile;
  uint64_t samples = 0;    // blocks measured
  double error_ratio = 0;  // measured / predicted; 1: as calibrated; 0: no sample yet
  bool drift = false;      // traffic does not fit the codec set
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
  std::vector<LossAtLength> loss_by_length;
  bool has_expected_error = false;  // false: the codec set predicts nothing, so nothing is checked
  std::vector<MeasuredQuality> quality;
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
