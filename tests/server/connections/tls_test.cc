#include "server/connections/tls.h"

#include <gtest/gtest.h>

#include <fstream>

#include "tests/server/connections/tls_client.h"
#include "tests/testing/running_node.h"
#include "tests/testing/test_certificate.h"

namespace fq {
namespace {

TEST(Tls, BadFile_IsRefusedWithOptionAndPath) {
  const TempFolder folder;
  const TestCertificate good = MakeCertificate(folder.path(), "node");
  const TestCertificate other = MakeCertificate(folder.path(), "other");
  const std::string bad = folder.path() + "/bad";
  std::ofstream(bad) << "not PEM";
  const std::pair<TlsFiles, std::string> rows[] = {
      {{bad, good.key, ""}, "--tls-cert = " + bad},
      {{"/nowhere.pem", good.key, ""}, "--tls-cert = /nowhere.pem"},
      {{good.cert, bad, ""}, "--tls-key = " + bad},
      {{good.cert, other.key, ""}, "--tls-key = " + other.key},
      {{good.cert, good.key, bad}, "--tls-client-ca = " + bad}};
  for (const auto& [files, text] : rows) {
    const auto context = TlsContext::Load(files);
    EXPECT_EQ(context.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_NE(context.status().message().find(text), absl::string_view::npos) << context.status();
  }
  EXPECT_TRUE(TlsContext::Load({good.cert, good.key, good.cert}).ok());
}

TEST(Tls, ClientCertificate_NamesAreRead) {
  const TempFolder folder;
  const TestCertificate node = MakeCertificate(folder.path(), "node");
  const TestCertificate client = MakeCertificate(
      folder.path(), "client", "URI:spiffe://here/client,DNS:localhost,DNS:client.here");
  TlsPair pair({node.cert, node.key, client.cert}, &client, "h2");
  ASSERT_TRUE(pair.ShakeHands());
  const auto names = ClientCertificate(pair.server().tls());
  ASSERT_TRUE(names.has_value());
  EXPECT_EQ(names->uris, std::vector<std::string>{"spiffe://here/client"});
  EXPECT_EQ(names->dns_names, (std::vector<std::string>{"localhost", "client.here"}));
  EXPECT_EQ(names->common_name, "client");
}

TEST(Tls, WithoutClientCa_NobodyIsAskedForACertificate) {
  const TempFolder folder;
  const TestCertificate node = MakeCertificate(folder.path(), "node");
  TlsPair pair({node.cert, node.key, ""}, &node, "h2");
  ASSERT_TRUE(pair.ShakeHands());
  EXPECT_FALSE(ClientCertificate(pair.server().tls()).has_value());
}

TEST(Tls, NoOrForeignCertificateOrOtherProtocol_IsRefused) {
  const TempFolder folder;
  const TestCertificate node = MakeCertificate(folder.path(), "node");
  const TestCertificate stranger = MakeCertificate(folder.path(), "stranger");
  const TlsFiles files{node.cert, node.key, node.cert};
  EXPECT_FALSE(TlsPair(files, nullptr, "h2").ShakeHands());
  EXPECT_FALSE(TlsPair(files, &stranger, "h2").ShakeHands());
  EXPECT_FALSE(TlsPair(files, &node, "http/1.1").ShakeHands());
  EXPECT_TRUE(TlsPair(files, &node, "h2").ShakeHands());
}

}  // namespace
}  // namespace fq
