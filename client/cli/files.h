// Whole files in and out. DataLoss: cannot be read or written, with the system's reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace fq::cli {

absl::StatusOr<std::string> ReadFile(const std::string& path);
absl::Status WriteFile(const std::string& path, absl::Span<const std::byte> bytes);

// Token ids in decimal, separated by blanks, newlines, commas or brackets. InvalidArgument names
// the first word that is none.
absl::StatusOr<std::vector<uint32_t>> ParseTokens(const std::string& text);

}  // namespace fq::cli
