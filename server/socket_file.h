// Unix sockets of the node. Called once per socket at start.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/segments.h"

namespace fq {

// Makes the directory (0700) when it is missing and removes a socket that nobody listens on.
// AlreadyExists: somebody does, or the path is not a socket. Unavailable names the path and the
// system's reason.
absl::Status PrepareSocketPath(const std::string& path);

// A non-blocking listener at `path`, which PrepareSocketPath has made free; `type` is SOCK_STREAM
// or SOCK_SEQPACKET. Nobody can connect before the mode is set. InvalidArgument: the path is too
// long. Unavailable names the path and the system's reason.
absl::StatusOr<OwnedFd> ListenUnix(const std::string& path, int type, uint32_t mode);

// Whether the peer of a connection may use a socket of that mode: without group or others' write it
// must be of our uid or root.
bool MayUseSocket(int connection, uint32_t mode);

}  // namespace fq
