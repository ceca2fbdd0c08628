#include "server/namespace_quality.h"

namespace fq {
namespace {

ProfileQuality StandingOf(const QualityWindow& window) {
  return {window.samples(), window.ratio(), window.drift()};
}

}  // namespace

NamespaceQuality::Change NamespaceQuality::Add(Profile profile, double ratio, double drift_ratio) {
  absl::MutexLock lock(&mutex_);
  QualityWindow& window = windows_[Slot(profile)];
  const bool changed = window.Add(ratio, drift_ratio);
  return {changed, StandingOf(window)};
}

ProfileQuality NamespaceQuality::Of(Profile profile) const {
  absl::MutexLock lock(&mutex_);
  return StandingOf(windows_[Slot(profile)]);
}

bool NamespaceQuality::MayWarn(QualityWarning warning, MonotonicTime now) {
  const size_t slot = static_cast<size_t>(warning);
  absl::MutexLock lock(&mutex_);
  if (warned_[slot] && now - warned_at_[slot] < kWarnEvery) return false;
  warned_[slot] = true;
  warned_at_[slot] = now;
  return true;
}

}  // namespace fq
