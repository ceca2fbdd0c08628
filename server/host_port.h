// Addresses of listeners. Pure functions, any thread.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fq {

struct HostPort {
  std::string host;  // without brackets
  uint16_t port = 0;
  bool loopback = false;  // a loopback literal or "localhost"; other names are not resolved
};

// "127.0.0.1:7600", "[::1]:7600", "localhost:0". InvalidArgument names `option` and the text.
absl::StatusOr<HostPort> ParseHostPort(absl::string_view option, absl::string_view text);

}  // namespace fq
