// TCP sockets of --listen. Called once at start.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "server/host_port.h"
#include "server/segments.h"

namespace fq {

struct TcpListeners {
  std::vector<OwnedFd> sockets;  // non-blocking, one per address that the host's name has
  int port = 0;                  // of all of them
};

// Port 0 takes a free one. Unavailable names host, port and the system's reason.
absl::StatusOr<TcpListeners> ListenTcp(const HostPort& at);

}  // namespace fq
