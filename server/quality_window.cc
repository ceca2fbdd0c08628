#include "server/quality_window.h"

#include <algorithm>
#include <cmath>

namespace fq {

bool QualityWindow::Add(double ratio, double drift_ratio) {
  const double keep = std::exp(-1.0 / kWindow);
  sum_ = sum_ * keep + (std::isfinite(ratio) ? std::min(ratio, kMostRatio) : kMostRatio);
  weight_ = weight_ * keep + 1;
  ++samples_;
  const bool before = drift_;
  const double limit = drift_ ? (1 + drift_ratio) / 2 : drift_ratio;
  drift_ = samples_ >= kFewest && this->ratio() > limit;
  return drift_ != before;
}

}  // namespace fq
