// Sizes as people write them. Pure function, any thread.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fq {

// "4096", "4GiB", "1.5 GB", "16k": a number that is not negative and a unit: none or B, kB/MB/GB/TB
// (powers of 1000), KiB/MiB/GiB/TiB (powers of 1024); case does not matter, "k" alone is kB.
// InvalidArgument shows the text.
absl::StatusOr<uint64_t> ParseByteSize(absl::string_view text);

}  // namespace fq
