// Durations of calls and their percentiles. One thread.
#pragma once

#include <cstddef>
#include <vector>

#include "absl/time/time.h"

namespace fq::cli {

class Latency {
 public:
  void Add(absl::Duration duration) {
    milliseconds_.push_back(absl::ToDoubleMilliseconds(duration));
  }
  size_t count() const { return milliseconds_.size(); }
  double total_ms() const;

  // The smallest duration that `fraction` (0..1) of all do not exceed; 0 without any.
  double PercentileMs(double fraction) const;

 private:
  std::vector<double> milliseconds_;
};

}  // namespace fq::cli
