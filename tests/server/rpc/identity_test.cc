#include "server/rpc/identity.h"

#include <grpc/grpc_security_constants.h>
#include <gtest/gtest.h>

namespace fq {
namespace {

using Properties = std::vector<std::pair<std::string, std::string>>;
class NoProperties : public grpc::AuthPropertyIterator {};

// What gRPC says of a connection, made up.
class Connection : public grpc::AuthContext {
 public:
  explicit Connection(Properties properties) : properties_(std::move(properties)) {}
  bool IsPeerAuthenticated() const override { return false; }
  std::vector<grpc::string_ref> GetPeerIdentity() const override { return {}; }
  std::string GetPeerIdentityPropertyName() const override { return {}; }
  std::vector<grpc::string_ref> FindPropertyValues(const std::string& name) const override {
    std::vector<grpc::string_ref> values;
    for (const auto& [key, value] : properties_) {
      if (key == name) values.emplace_back(value);
    }
    return values;
  }
  grpc::AuthPropertyIterator begin() const override { return NoProperties(); }
  grpc::AuthPropertyIterator end() const override { return NoProperties(); }
  void AddProperty(const std::string&, const grpc::string_ref&) override {}
  bool SetPeerIdentityPropertyName(const std::string&) override { return false; }

 private:
  const Properties properties_;
};

absl::StatusOr<Caller> OverTls(Properties properties) {
  properties.push_back({GRPC_TRANSPORT_SECURITY_TYPE_PROPERTY_NAME, "ssl"});
  return CallerOf("ipv4:1.2.3.4:5", Connection(std::move(properties)), "local");
}

constexpr char kCert[] = GRPC_X509_PEM_CERT_PROPERTY_NAME;
constexpr char kSpiffe[] = GRPC_PEER_SPIFFE_ID_PROPERTY_NAME;
constexpr char kDns[] = GRPC_PEER_DNS_PROPERTY_NAME;
constexpr char kCommonName[] = GRPC_X509_CN_PROPERTY_NAME;

TEST(Identity, UnixSocket_IsLocalWithTheNodesTenant) {
  const auto caller = CallerOf("unix:", Connection(Properties()), "local");
  EXPECT_EQ(caller->tenant, "local");
  EXPECT_TRUE(caller->local);
}

TEST(Identity, PlaintextLoopback_HasTheNodesTenantButNoSegments) {
  const auto caller = CallerOf(
      "ipv4:127.0.0.1:5",
      Connection(Properties{{GRPC_TRANSPORT_SECURITY_TYPE_PROPERTY_NAME, "insecure"}}), "local");
  EXPECT_EQ(caller->tenant, "local");
  EXPECT_FALSE(caller->local);
}

TEST(Identity, Certificate_SpiffeBeforeDnsBeforeCommonName) {
  EXPECT_EQ(
      OverTls({{kCert, "x"}, {kSpiffe, "spiffe://a/b"}, {kDns, "d"}, {kCommonName, "c"}})->tenant,
      "spiffe://a/b");
  EXPECT_EQ(OverTls({{kCert, "x"}, {kDns, "d"}, {kCommonName, "c"}})->tenant, "d");
  EXPECT_EQ(OverTls({{kCert, "x"}, {kDns, "localhost"}, {kCommonName, "c"}})->tenant, "c");
  EXPECT_FALSE(OverTls({{kCert, "x"}, {kCommonName, "c"}})->local);
}

TEST(Identity, NoCertificate_IsAnonymousNeverTheNodesTenant) {
  EXPECT_EQ(OverTls({})->tenant, "anonymous");
}

TEST(Identity, CertificateThatNamesNobody_IsUnauthenticated) {
  for (const Properties& properties :
       {Properties{{kCert, "x"}}, Properties{{kCert, "x"}, {kCommonName, ""}},
        Properties{{kCert, "x"}, {kCommonName, "spiffe://forged/id"}},
        Properties{{kCert, "x"}, {kCommonName, std::string(257, 'c')}}}) {
    EXPECT_EQ(OverTls(properties).status().code(), absl::StatusCode::kUnauthenticated);
  }
}

}  // namespace
}  // namespace fq
