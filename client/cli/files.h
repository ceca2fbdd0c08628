// Whole files in and out; `flag` is the one that names the file, for what is said of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace fq::cli {

// InvalidArgument: cannot be read, with the system's reason; no data error, which is the node's.
absl::StatusOr<std::string> ReadFile(absl::string_view flag, const std::string& path);

// DataLoss: cannot be written, with the system's reason.
absl::Status WriteFile(absl::string_view flag, const std::string& path,
                       absl::Span<const std::byte> bytes);

// Token ids in decimal, separated by blanks, newlines, commas or brackets. InvalidArgument names
// the first word that is none.
absl::StatusOr<std::vector<uint32_t>> ParseTokens(const std::string& text);

}  // namespace fq::cli
