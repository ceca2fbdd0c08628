// Checks of single fields, shared by the checks of whole requests (validate_session.h,
// validate_blocks.h). A failed check names the field, its value and what is allowed. Pure
// functions, any thread; nothing is allocated before they pass.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/base/bad_field.h"

namespace fq {

// What the options allow in one request.
struct RequestLimits {
  uint32_t max_blocks_per_call = 1024;
  uint64_t max_inline_bytes = uint64_t{16} << 20;
};

inline constexpr size_t kKeyBytes = 32;
inline constexpr size_t kIdBytes = 16;  // of sessions and leases

// `field` has `bytes` bytes; the bytes themselves are never shown.
absl::Status CheckLength(absl::string_view field, size_t bytes, size_t least, size_t most);
absl::Status CheckRange(absl::string_view field, uint64_t value, uint64_t least, uint64_t most);
absl::Status CheckOneOf(absl::string_view field, uint64_t value,
                        std::initializer_list<uint64_t> allowed);

// Session and lease ids.
absl::Status CheckId(absl::string_view field, absl::string_view id);

// 32 bytes per block, 1..max_blocks_per_call of them. ResourceExhausted: more.
absl::Status CheckKeys(absl::string_view keys, const RequestLimits& limits);
absl::Status CheckBlockCount(absl::string_view field, uint64_t blocks, const RequestLimits& limits);

// The floor of Lookup and Load.
absl::Status CheckFloor(int min_profile);

}  // namespace fq
