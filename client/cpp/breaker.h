// Circuit breaker: after `failures` failures of the node in a row no call goes out for `open_for`;
// then one call tries, and its outcome decides. Thread-safe; the caller brings the time.
#pragma once

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace fq::client {

class Breaker {
 public:
  struct Options {
    uint32_t failures = 3;
    absl::Duration open_for = absl::Seconds(2);
  };

  explicit Breaker(const Options& options) : options_(options) {}

  // Whether a call may go out now; its outcome must be reported then.
  bool Allow(absl::Time now) ABSL_LOCKS_EXCLUDED(mu_);
  void Succeeded() ABSL_LOCKS_EXCLUDED(mu_);
  void Failed(absl::Time now) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  const Options options_;
  absl::Mutex mu_;
  uint32_t failures_in_a_row_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Time open_until_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
};

}  // namespace fq::client
