// Who calls: the tenant that the transport proves. Never taken from a request. Any thread.
#pragma once

#include <string>

#include <grpcpp/security/auth_context.h>
#include <grpcpp/server_context.h>

#include "absl/status/statusor.h"

namespace fq {

struct Caller {
  std::string tenant;
  bool local = false;  // came over the Unix socket: may use the segment socket
};

// Unix socket and loopback plaintext: `local_tenant`. TLS with a client certificate: its SPIFFE
// URI, else its first DNS name, else its common name. TLS without one: "anonymous".
// Unauthenticated: a certificate without a usable name.
absl::StatusOr<Caller> CallerOf(const grpc::ServerContextBase& context,
                                const std::string& local_tenant);

// The same of a connection's own words.
absl::StatusOr<Caller> CallerOf(const std::string& peer, const grpc::AuthContext& auth,
                                const std::string& local_tenant);

}  // namespace fq
