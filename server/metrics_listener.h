// Serves /metrics for Prometheus over HTTP, from threads of its own.
#pragma once

#include <memory>
#include <string>

#include <prometheus/exposer.h>

#include "absl/status/statusor.h"
#include "server/metrics.h"

namespace fq {

// One thread creates and destroys it.
class MetricsListener {
 public:
  // Unavailable names the address. `metrics` outlives the listener.
  static absl::StatusOr<std::unique_ptr<MetricsListener>> Start(const std::string& address,
                                                                Metrics* metrics);
  int port() const;

 private:
  MetricsListener() = default;

  std::shared_ptr<prometheus::Collectable> metrics_;  // what the exposer wants; owns nothing
  std::unique_ptr<prometheus::Exposer> exposer_;
};

}  // namespace fq
