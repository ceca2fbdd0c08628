// Where a Unix socket is going to lie. Called once per socket at start.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace fq {

// Makes the directory (0700) when it is missing and removes a socket that nobody listens on.
// AlreadyExists: somebody does, or the path is not a socket. Unavailable names the path and the
// system's reason.
absl::Status PrepareSocketPath(const std::string& path);

absl::Status SetSocketMode(const std::string& path, uint32_t mode);

}  // namespace fq
