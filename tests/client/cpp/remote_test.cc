// A client of another host, as far as the node can tell: TCP, with and without TLS.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "client/cpp/client.h"
#include "tests/testing/eventually.h"
#include "tests/testing/node_process.h"

namespace fq::client {
namespace {

// A self-signed certificate of 127.0.0.1 in a folder of its own.
class Certificate {
 public:
  Certificate() {
    EXPECT_NE(mkdtemp(folder_.data()), nullptr);
    const std::string command = absl::StrCat(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=node -addext "
        "subjectAltName=IP:127.0.0.1 -keyout ",
        key(), " -out ", cert(), " 2>/dev/null");
    EXPECT_EQ(std::system(command.c_str()), 0) << command;
  }
  ~Certificate() { std::filesystem::remove_all(folder_); }
  std::string cert() const { return folder_ + "/cert.pem"; }
  std::string key() const { return folder_ + "/key.pem"; }

  static std::string Text(const std::string& path) {
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
  }

 private:
  std::string folder_ = "/tmp/fqc-XXXXXX";
};

SessionSpec Spec() {
  SessionSpec spec;
  spec.namespace_name = "remote";
  spec.descriptor.model = "m";
  spec.descriptor.layers = 2;
  spec.descriptor.kv_heads = 1;
  spec.descriptor.head_size = 64;
  spec.descriptor.dtype = DType::kF32;
  spec.range = WholeModel(spec.descriptor);
  return spec;
}

ClientOptions OptionsFor(const NodeProcess& node) {
  ClientOptions options;
  options.endpoint = absl::StrCat("127.0.0.1:", node.tcp_port());
  options.deadline = absl::FromChrono(kPatience);
  return options;
}

TEST(Remote, StoreAndLoad_GoInline) {
  const NodeProcess node({"--listen", "127.0.0.1:0"});
  const auto client = *Client::Create(OptionsFor(node));
  const auto session = *client->Open(Spec(), {});
  EXPECT_EQ(session->info().segment_socket, "");
  const uint64_t block_bytes = DenseBlockBytes(Spec().descriptor, Spec().range);
  std::vector<float> pages(3 * block_bytes / sizeof(float));
  for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<float>(i % 1000);
  const auto keys = KeysOf(session->Chain(""), std::vector<uint32_t>(3 * kBlockTokens, 5));
  StoreCall store;
  store.keys = keys;
  store.layout = DenseLayout(Spec().descriptor, Spec().range);
  store.places = DensePlaces(0, block_bytes, 3);
  store.payload = {reinterpret_cast<const std::byte*>(pages.data()), 3 * block_bytes};
  ASSERT_TRUE(session->Store(store).ok());
  LookupCall lookup;
  lookup.keys = keys;
  LoadCall load;
  load.lease = session->Lookup(lookup).lease;
  load.block_count = 3;
  std::vector<float> loaded(pages.size());
  load.destination = {reinterpret_cast<std::byte*>(loaded.data()), 3 * block_bytes};
  const Loaded result = session->Load(load);
  EXPECT_TRUE(result.node.ok()) << result.node;
  EXPECT_EQ(loaded, pages);
}

TEST(Remote, Segment_IsRefusedHere) {
  const NodeProcess node({"--listen", "127.0.0.1:0"});
  const auto client = *Client::Create(OptionsFor(node));
  const auto session = *client->Open(Spec(), {});
  StoreCall call;
  call.segment = *Segment::Create(4096);
  EXPECT_TRUE(absl::IsFailedPrecondition(session->Store(call).status()));
}

TEST(Remote, Inline_MoreThanTheNodeTakes_IsExhausted) {
  const NodeProcess node({"--listen", "127.0.0.1:0", "--max-inline-bytes", "32KiB"});
  const auto client = *Client::Create(OptionsFor(node));
  const auto session = *client->Open(Spec(), {});
  const uint64_t block_bytes = DenseBlockBytes(Spec().descriptor, Spec().range);
  ASSERT_GT(block_bytes, 32u << 10);
  const std::vector<std::byte> pages(block_bytes);
  const auto keys = KeysOf(session->Chain(""), std::vector<uint32_t>(kBlockTokens, 5));
  StoreCall store;
  store.keys = keys;
  store.layout = DenseLayout(Spec().descriptor, Spec().range);
  store.places = DensePlaces(0, block_bytes, 1);
  store.payload = pages;
  EXPECT_TRUE(absl::IsResourceExhausted(session->Store(store).status()));
}

TEST(Remote, Tls_OnlyWithTheRightRoots) {
  const Certificate certificate, other;
  const NodeProcess node({"--listen", "127.0.0.1:0", "--tls-cert", certificate.cert(), "--tls-key",
                          certificate.key()});
  ClientOptions options = OptionsFor(node);
  options.tls.ca = Certificate::Text(certificate.cert());
  const auto status = (*Client::Create(options))->Status({});
  EXPECT_TRUE(status.ok()) << status.status();
  options.tls.ca = Certificate::Text(other.cert());
  EXPECT_TRUE(absl::IsUnavailable((*Client::Create(options))->Status({}).status()));
  options.tls.ca = "";
  EXPECT_TRUE(absl::IsUnavailable((*Client::Create(options))->Status({}).status()));
}

}  // namespace
}  // namespace fq::client
