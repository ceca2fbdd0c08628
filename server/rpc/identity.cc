#include "server/rpc/identity.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace fq {
namespace {

constexpr size_t kMaxTenantBytes = 256;
constexpr char kAnonymous[] = "anonymous";

// Empty when the certificate names nobody.
std::string NameIn(const Certificate& certificate) {
  // A SPIFFE certificate has one URI and no other (SPIFFE X.509-SVID, section 2).
  if (certificate.uris.size() == 1 && absl::StartsWith(certificate.uris[0], "spiffe://")) {
    return certificate.uris[0];
  }
  for (const std::string& dns : certificate.dns_names) {
    if (dns != "localhost") return dns;  // every host is that
  }
  // Free text in many authorities: it must not pass for a SPIFFE id.
  return absl::StrContains(certificate.common_name, "://") ? std::string()
                                                           : certificate.common_name;
}

}  // namespace

absl::StatusOr<Caller> CallerOf(const grpc::ServerContextBase& context, Node& node) {
  const auto peer = node.peers().Find(context.peer());
  if (peer == nullptr) return absl::UnavailableError("the connection is over");
  return CallerOf(*peer, node.options().tenant);
}

absl::StatusOr<Caller> CallerOf(const Peer& peer, const std::string& local_tenant) {
  if (peer.transport != Peer::Transport::kTls) {
    return Caller{local_tenant, peer.transport == Peer::Transport::kUnix, false, peer.address};
  }
  if (!peer.certificate.has_value()) return Caller{kAnonymous, false, false, peer.address};
  std::string tenant = NameIn(*peer.certificate);
  if (tenant.empty() || tenant.size() > kMaxTenantBytes) {
    return absl::UnauthenticatedError(absl::StrCat("the client certificate's name has ",
                                                   tenant.size(), " bytes: must have 1..",
                                                   kMaxTenantBytes));
  }
  return Caller{tenant, false, true, peer.address};
}

absl::StatusOr<std::string> TenantOf(const Caller& caller, const std::string& named,
                                     const std::vector<std::string>& trusted_nodes) {
  if (named.empty() || named == caller.tenant) return caller.tenant;
  const bool trusted = caller.certified && std::find(trusted_nodes.begin(), trusted_nodes.end(),
                                                     caller.tenant) != trusted_nodes.end();
  if (trusted) return named;
  return absl::PermissionDeniedError(
      absl::StrCat("tenant: the caller is '", caller.tenant,
                   "', which is no --trusted-node of this node: it may not read for another"));
}

}  // namespace fq
