// Who calls: the tenant that the transport proves. Never taken from a request. Any thread.
#pragma once

#include <string>
#include <vector>

#include <grpcpp/server_context.h>

#include "absl/status/statusor.h"
#include "server/connected_peers.h"
#include "server/node.h"

namespace fq {

struct Caller {
  std::string tenant;
  bool local = false;      // came over the Unix socket: may use the segment socket
  bool certified = false;  // a client certificate names the tenant
  std::string address;     // for logs
};

// Unix socket and loopback plaintext: the tenant of `--tenant`. TLS with a client certificate: its
// SPIFFE URI, else its first DNS name, else its common name. TLS without one: "anonymous".
// Unauthenticated: a certificate without a usable name. Unavailable: the connection is over.
absl::StatusOr<Caller> CallerOf(const grpc::ServerContextBase& context, Node& node);

// The same of one peer.
absl::StatusOr<Caller> CallerOf(const Peer& peer, const std::string& local_tenant);

// Whose blocks a session of `caller` is about: its own tenant's, or those of the tenant it names
// when its certificate is that of a trusted node. PermissionDenied: it may not.
absl::StatusOr<std::string> TenantOf(const Caller& caller, const std::string& named,
                                     const std::vector<std::string>& trusted_nodes);

}  // namespace fq
