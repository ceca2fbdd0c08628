#include "server/connections/tls.h"

#include <gtest/gtest.h>

#include <fstream>

#include "absl/strings/str_replace.h"
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
      {{bad, good.key, ""}, "tls-cert = " + bad + ": cannot be read: no start line"},
      {{"/nowhere.pem", good.key, ""},
       "tls-cert = /nowhere.pem: cannot be read: No such file or directory"},
      {{good.cert, bad, ""}, "tls-key = " + bad + ": cannot be read: "},
      {{good.cert, other.key, ""}, "tls-key = " + other.key + ": is not the key of --"},
      {{good.cert, good.key, bad}, "tls-ca = " + bad + ": cannot be read: "}};
  for (const auto& [files, text] : rows) {
    const auto context = TlsContext::Load(files);
    EXPECT_EQ(context.status().code(), absl::StatusCode::kInvalidArgument) << text;
    const absl::Status fetch = CheckFetchTls(files);
    EXPECT_EQ(fetch.code(), absl::StatusCode::kInvalidArgument) << text;
    const std::string here = "--" + absl::StrReplaceAll(text, {{"tls-ca", "tls-client-ca"}});
    EXPECT_NE(context.status().message().find(here), absl::string_view::npos) << context.status();
    EXPECT_NE(fetch.message().find("--fetch-" + text), absl::string_view::npos) << fetch;
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
