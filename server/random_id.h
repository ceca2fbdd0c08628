// Ids that nobody can guess: sessions and leases are capabilities. Any thread.
#pragma once

#include <array>
#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fq {

using RandomId = std::array<uint8_t, 16>;

// 16 bytes of the system's generator. Internal when it fails.
absl::StatusOr<RandomId> MakeRandomId();

// `bytes` must hold 16.
RandomId ToRandomId(absl::string_view bytes);

}  // namespace fq
