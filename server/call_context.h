// What every call brings beside its request: until when it is wanted. Any thread.
#pragma once

#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "server/clock.h"

namespace fq {

struct CallContext {
  MonotonicTime deadline = MonotonicTime::max();
  std::function<bool()> cancelled = [] { return false; };
  // Asked before a reply of so many bytes is made. ResourceExhausted: too many that nobody takes.
  std::function<absl::Status(uint64_t)> hold_reply = [](uint64_t) { return absl::OkStatus(); };

  // DeadlineExceeded or Cancelled once nobody waits for the answer any more. Asked between blocks.
  absl::Status Check() const {
    if (cancelled()) return absl::CancelledError("the caller cancelled");
    if (SteadyNow() >= deadline) return absl::DeadlineExceededError("the deadline passed");
    return absl::OkStatus();
  }
};

}  // namespace fq
