// What the node has measured of one namespace: error against prediction per profile, and when it
// last warned. Shared by the ranges of the namespace. Thread-safe.
#pragma once

#include <array>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "kernels/slab.h"
#include "server/clock.h"
#include "server/quality_window.h"

namespace fq {

// The profiles that come from a codec set and so have a prediction.
inline constexpr Profile kCalibratedProfiles[] = {Profile::kNearLossless, Profile::kCompact};
constexpr bool IsCalibrated(Profile profile) {
  return profile == Profile::kNearLossless || profile == Profile::kCompact;
}

// Of one profile; see QualityWindow.
struct ProfileQuality {
  uint64_t samples = 0;
  double error_ratio = 0;  // 0: nothing measured, or nothing predicted
  bool drift = false;
};

enum class QualityWarning { kDrift, kBeyondCalibrated, kBeyondTwice };

class NamespaceQuality {
 public:
  static constexpr auto kWarnEvery = std::chrono::minutes(10);  // of one kind

  struct Change {
    bool changed = false;  // of the drift state
    ProfileQuality now;
  };
  // `profile` is calibrated; otherwise as QualityWindow::Add.
  Change Add(Profile profile, double ratio, double drift_ratio);

  ProfileQuality Of(Profile profile) const;

  // True once per kWarnEvery and kind: the caller writes the warning.
  bool MayWarn(QualityWarning warning, MonotonicTime now);

 private:
  static size_t Slot(Profile profile) { return profile == Profile::kCompact ? 1 : 0; }

  mutable absl::Mutex mutex_;
  std::array<QualityWindow, 2> windows_ ABSL_GUARDED_BY(mutex_);  // by Slot
  std::array<bool, 3> warned_ ABSL_GUARDED_BY(mutex_){};          // by QualityWarning
  std::array<MonotonicTime, 3> warned_at_ ABSL_GUARDED_BY(mutex_){};
};

}  // namespace fq
