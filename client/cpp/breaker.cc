#include "client/cpp/breaker.h"

namespace fq::client {

bool Breaker::Allow(absl::Time now) {
  absl::MutexLock lock(&mu_);
  if (failures_in_a_row_ < options_.failures) return true;
  if (now < open_until_) return false;
  open_until_ = now + options_.open_for;  // others wait for the outcome of this one
  return true;
}

void Breaker::Succeeded() {
  absl::MutexLock lock(&mu_);
  failures_in_a_row_ = 0;
}

void Breaker::Failed(absl::Time now) {
  absl::MutexLock lock(&mu_);
  if (failures_in_a_row_ < options_.failures) ++failures_in_a_row_;
  open_until_ = now + options_.open_for;
}

}  // namespace fq::client
