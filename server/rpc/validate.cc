#include "server/rpc/validate.h"

#include <algorithm>

#include "absl/strings/str_join.h"
#include "kernels/base/status_macros.h"
#include "server/rpc/wire.h"

namespace fq {

absl::Status CheckLength(absl::string_view field, size_t bytes, size_t least, size_t most) {
  if (bytes >= least && bytes <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " has ", bytes, " bytes: must have ",
                   least == most ? absl::StrCat(least) : absl::StrCat(least, "..", most)));
}

absl::Status CheckRange(absl::string_view field, uint64_t value, uint64_t least, uint64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return BadField(field, value, absl::StrCat("must be in ", least, "..", most));
}

absl::Status CheckOneOf(absl::string_view field, uint64_t value,
                        std::initializer_list<uint64_t> allowed) {
  if (std::find(allowed.begin(), allowed.end(), value) != allowed.end()) return absl::OkStatus();
  return BadField(field, value, absl::StrCat("must be one of ", absl::StrJoin(allowed, ", ")));
}

absl::Status CheckId(absl::string_view field, absl::string_view id) {
  return CheckLength(field, id.size(), kIdBytes, kIdBytes);
}

absl::Status CheckBlockCount(absl::string_view field, uint64_t blocks,
                             const RequestLimits& limits) {
  if (blocks <= limits.max_blocks_per_call) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      field, ": ", blocks, " blocks, max-blocks-per-call is ", limits.max_blocks_per_call));
}

absl::Status CheckKeys(absl::string_view keys, const RequestLimits& limits) {
  if (keys.empty() || keys.size() % kKeyBytes != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "keys has ", keys.size(), " bytes: must have 32 per block, for at least one block"));
  }
  return CheckBlockCount("keys", keys.size() / kKeyBytes, limits);
}

absl::Status CheckFloor(int min_profile) {
  switch (min_profile) {
    case wire::PROFILE_UNSPECIFIED:
    case wire::PROFILE_EXACT:
    case wire::PROFILE_NEAR_LOSSLESS:
    case wire::PROFILE_COMPACT:
      return absl::OkStatus();
    default:
      return BadField("min_profile", min_profile,
                      "must be EXACT (1), NEAR_LOSSLESS (2), COMPACT (3) or unspecified (0)");
  }
}

}  // namespace fq
