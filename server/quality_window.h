// Whether a profile's error still fits what calibration predicted: a mean of ratios that forgets.
// Not thread-safe.
#pragma once

#include <cstdint>

namespace fq {

class QualityWindow {
 public:
  // A sample weighs 1/e after this many newer ones. So twice the predicted error passes a limit of
  // 1.5 within kWindow samples, whatever came before; and after the worst ratio, kRecovery samples
  // as predicted end the drift.
  static constexpr int kWindow = 32;
  static constexpr int kRecovery = 132;
  // Before these, no drift is called: one odd block is not traffic.
  static constexpr int kFewest = 8;
  // Larger ratios count as this, so that bad traffic is forgotten as fast as it was noticed.
  static constexpr double kMostRatio = 16;

  // Takes measured / predicted error of one block, >= 0. True when the drift state changed: it
  // begins above `drift_ratio` (> 1) and ends below the middle between 1 and `drift_ratio`.
  bool Add(double ratio, double drift_ratio);

  uint64_t samples() const { return samples_; }
  double ratio() const { return samples_ == 0 ? 0 : sum_ / weight_; }  // 0: no sample yet
  bool drift() const { return drift_; }

 private:
  uint64_t samples_ = 0;
  double sum_ = 0, weight_ = 0;  // of the samples, the newest weighing 1
  bool drift_ = false;
};

}  // namespace fq
