#include "client/cli/latency.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace fq::cli {

double Latency::total_ms() const {
  return std::accumulate(milliseconds_.begin(), milliseconds_.end(), 0.0);
}

double Latency::PercentileMs(double fraction) const {
  if (milliseconds_.empty()) return 0;
  std::vector<double> sorted = milliseconds_;
  const auto rank = static_cast<size_t>(std::ceil(fraction * static_cast<double>(sorted.size())));
  const size_t index = std::min(sorted.size() - 1, rank > 0 ? rank - 1 : 0);
  std::nth_element(sorted.begin(), sorted.begin() + static_cast<ptrdiff_t>(index), sorted.end());
  return sorted[index];
}

}  // namespace fq::cli
