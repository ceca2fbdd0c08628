// A node's hint on a ResourceExhausted status: waiting this long may help. Any thread.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/time/time.h"

namespace fq::client {

inline constexpr char kRetryAfterPayload[] = "flashquant/retry-after-ms";

inline std::optional<absl::Duration> RetryAfter(const absl::Status& status) {
  const absl::optional<absl::Cord> text = status.GetPayload(kRetryAfterPayload);
  uint32_t milliseconds = 0;
  if (!text || !absl::SimpleAtoi(std::string(*text), &milliseconds)) return std::nullopt;
  return absl::Milliseconds(milliseconds);
}

}  // namespace fq::client
