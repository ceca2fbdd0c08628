#include "server/rpc/identity.h"

#include <grpc/grpc_security_constants.h>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace fq {
namespace {

constexpr size_t kMaxTenantBytes = 256;
constexpr char kAnonymous[] = "anonymous";

std::string FirstProperty(const grpc::AuthContext& auth, const char* name) {
  std::vector<grpc::string_ref> values = auth.FindPropertyValues(name);
  return values.empty() ? std::string() : std::string(values[0].data(), values[0].size());
}

// Kinds are kept apart, so that a DNS name can never pass for a SPIFFE id of the same text.
std::string TenantOfCertificate(const grpc::AuthContext& auth) {
  std::string spiffe = FirstProperty(auth, GRPC_PEER_SPIFFE_ID_PROPERTY_NAME);
  if (!spiffe.empty()) return spiffe;
  std::string dns = FirstProperty(auth, GRPC_PEER_DNS_PROPERTY_NAME);
  if (!dns.empty()) return absl::StrCat("dns:", dns);
  std::string common_name = FirstProperty(auth, GRPC_X509_CN_PROPERTY_NAME);
  return common_name.empty() ? common_name : absl::StrCat("cn:", common_name);
}

}  // namespace

absl::StatusOr<Caller> CallerOf(const grpc::ServerContextBase& context,
                                const std::string& local_tenant) {
  if (absl::StartsWith(context.peer(), "unix:")) return Caller{local_tenant, true};
  std::shared_ptr<const grpc::AuthContext> auth = context.auth_context();
  if (FirstProperty(*auth, GRPC_TRANSPORT_SECURITY_TYPE_PROPERTY_NAME) !=
      GRPC_SSL_TRANSPORT_SECURITY_TYPE) {
    return Caller{local_tenant, false};
  }
  if (FirstProperty(*auth, GRPC_X509_PEM_CERT_PROPERTY_NAME).empty()) {
    return Caller{kAnonymous, false};
  }
  std::string tenant = TenantOfCertificate(*auth);
  if (tenant.empty() || tenant.size() > kMaxTenantBytes) {
    return absl::UnauthenticatedError(absl::StrCat("the client certificate's name has ",
                                                   tenant.size(), " bytes: must have 1..",
                                                   kMaxTenantBytes));
  }
  return Caller{tenant, false};
}

}  // namespace fq
