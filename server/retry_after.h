// A hint on a status: waiting this long may help. Set where a limit is met, sent by rpc/status.h.
// Any thread.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace fq {

inline constexpr char kRetryAfterUrl[] = "flashquant/retry-after-ms";

inline absl::Status WithRetryAfter(absl::Status status, uint32_t milliseconds) {
  status.SetPayload(kRetryAfterUrl, absl::Cord(absl::StrCat(milliseconds)));
  return status;
}

inline std::optional<uint32_t> RetryAfterMs(const absl::Status& status) {
  uint32_t milliseconds = 0;
  absl::optional<absl::Cord> payload = status.GetPayload(kRetryAfterUrl);
  if (!payload.has_value() || !absl::SimpleAtoi(std::string(*payload), &milliseconds)) return {};
  return milliseconds;
}

}  // namespace fq
