// What every call brings beside its request: until when it is wanted. Any thread.
#pragma once

#include <functional>

#include "absl/status/status.h"
#include "server/clock.h"

namespace fq {

struct CallContext {
  MonotonicTime deadline = MonotonicTime::max();
  std::function<bool()> cancelled = [] { return false; };

  // DeadlineExceeded or Cancelled once nobody waits for the answer any more. Asked between blocks.
  absl::Status Check() const {
    if (cancelled()) return absl::CancelledError("the caller cancelled");
    if (SteadyNow() >= deadline) return absl::DeadlineExceededError("the deadline passed");
    return absl::OkStatus();
  }
};

}  // namespace fq
