#include "server/rpc/identity.h"

#include <grpc/grpc_security_constants.h>

#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace fq {
namespace {

constexpr size_t kMaxTenantBytes = 256;
constexpr char kAnonymous[] = "anonymous";

std::vector<std::string> Properties(const grpc::AuthContext& auth, const char* name) {
  std::vector<std::string> texts;
  for (grpc::string_ref value : auth.FindPropertyValues(name)) {
    texts.emplace_back(value.data(), value.size());
  }
  return texts;
}

bool Has(const grpc::AuthContext& auth, const char* name) {
  return !auth.FindPropertyValues(name).empty();
}

// Empty when the certificate names nobody.
std::string TenantOfCertificate(const grpc::AuthContext& auth) {
  for (const std::string& spiffe : Properties(auth, GRPC_PEER_SPIFFE_ID_PROPERTY_NAME))
    return spiffe;
  for (const std::string& dns : Properties(auth, GRPC_PEER_DNS_PROPERTY_NAME)) {
    if (dns != "localhost") return dns;  // every host is that
  }
  for (const std::string& common_name : Properties(auth, GRPC_X509_CN_PROPERTY_NAME)) {
    // Free text in many authorities: it must not pass for a SPIFFE id.
    if (!absl::StrContains(common_name, "://")) return common_name;
  }
  return std::string();
}

}  // namespace

absl::StatusOr<Caller> CallerOf(const grpc::ServerContextBase& context,
                                const std::string& local_tenant) {
  return CallerOf(context.peer(), *context.auth_context(), local_tenant);
}

absl::StatusOr<Caller> CallerOf(const std::string& peer, const grpc::AuthContext& auth,
                                const std::string& local_tenant) {
  if (absl::StartsWith(peer, "unix:")) return Caller{local_tenant, true};
  if (Properties(auth, GRPC_TRANSPORT_SECURITY_TYPE_PROPERTY_NAME) !=
      std::vector<std::string>{GRPC_SSL_TRANSPORT_SECURITY_TYPE}) {
    return Caller{local_tenant, false};
  }
  if (!Has(auth, GRPC_X509_PEM_CERT_PROPERTY_NAME)) return Caller{kAnonymous, false};
  std::string tenant = TenantOfCertificate(auth);
  if (tenant.empty() || tenant.size() > kMaxTenantBytes) {
    return absl::UnauthenticatedError(absl::StrCat("the client certificate's name has ",
                                                   tenant.size(), " bytes: must have 1..",
                                                   kMaxTenantBytes));
  }
  return Caller{tenant, false};
}

}  // namespace fq
