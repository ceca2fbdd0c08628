#include "server/rpc/identity.h"

#include <gtest/gtest.h>

namespace fq {
namespace {

Peer Over(Peer::Transport transport) {
  Peer peer;
  peer.transport = transport;
  peer.address = "somewhere";
  return peer;
}

Peer With(Certificate certificate) {
  Peer peer = Over(Peer::Transport::kTls);
  peer.certificate = std::move(certificate);
  return peer;
}

TEST(Identity, UnixSocket_IsLocalWithTheNodesTenant) {
  const auto caller = CallerOf(Over(Peer::Transport::kUnix), "local");
  EXPECT_EQ(caller->tenant, "local");
  EXPECT_EQ(caller->address, "somewhere");
  EXPECT_TRUE(caller->local);
}

TEST(Identity, PlaintextLoopback_HasTheNodesTenantButNoSegments) {
  const auto caller = CallerOf(Over(Peer::Transport::kPlainTcp), "local");
  EXPECT_EQ(caller->tenant, "local");
  EXPECT_FALSE(caller->local);
}

TEST(Identity, Certificate_SpiffeBeforeDnsBeforeCommonName) {
  EXPECT_EQ(CallerOf(With({{"spiffe://a/b"}, {"d"}, "c"}), "local")->tenant, "spiffe://a/b");
  EXPECT_EQ(CallerOf(With({{}, {"d", "e"}, "c"}), "local")->tenant, "d");
  EXPECT_EQ(CallerOf(With({{}, {"localhost"}, "c"}), "local")->tenant, "c");
  EXPECT_FALSE(CallerOf(With({{}, {}, "c"}), "local")->local);
  EXPECT_TRUE(CallerOf(With({{}, {}, "c"}), "local")->certified);
  EXPECT_FALSE(CallerOf(Over(Peer::Transport::kTls), "local")->certified);
}

TEST(Identity, UrisThatAreNoSpiffeId_AreNoName) {
  EXPECT_EQ(CallerOf(With({{"https://a/b"}, {"d"}, ""}), "local")->tenant, "d");
  EXPECT_EQ(CallerOf(With({{"spiffe://a/b", "spiffe://a/c"}, {"d"}, ""}), "local")->tenant, "d");
}

TEST(Identity, NoCertificate_IsAnonymousNeverTheNodesTenant) {
  EXPECT_EQ(CallerOf(Over(Peer::Transport::kTls), "local")->tenant, "anonymous");
}

TEST(Identity, CertificateThatNamesNobody_IsUnauthenticated) {
  for (const Certificate& certificate : {Certificate{}, Certificate{{}, {}, "spiffe://forged/id"},
                                         Certificate{{}, {}, std::string(257, 'c')}}) {
    EXPECT_EQ(CallerOf(With(certificate), "local").status().code(),
              absl::StatusCode::kUnauthenticated);
  }
}

TEST(Identity, NamedTenant_IsTheCallersOwnOrNeedsTheCertificateOfATrustedNode) {
  const std::vector<std::string> trusted = {"node-b"};
  const Caller team{"team", false, true, ""}, node{"node-b", false, true, ""};
  EXPECT_EQ(*TenantOf(team, "", trusted), "team");
  EXPECT_EQ(*TenantOf(team, "team", trusted), "team");
  EXPECT_EQ(*TenantOf(node, "team", trusted), "team");
  EXPECT_EQ(*TenantOf(node, "", trusted), "node-b");
  EXPECT_TRUE(absl::IsPermissionDenied(TenantOf(team, "other", trusted).status()));
  EXPECT_TRUE(absl::IsPermissionDenied(TenantOf(node, "team", {}).status()));
}

TEST(Identity, NameWithoutACertificate_IsNoTrustedNode) {
  const Caller local{"node-b", true, false, ""};
  EXPECT_TRUE(absl::IsPermissionDenied(TenantOf(local, "team", {"node-b"}).status()));
}

}  // namespace
}  // namespace fq
