// The key chain against the golden vectors that the Python client is held to as well.
#include "client/cpp/keys.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"

namespace fq::client {
namespace {

nlohmann::json Golden() {
  std::ifstream in(FQ_SOURCE_DIR "/tests/golden/keys.json");
  return nlohmann::json::parse(in);
}

std::string Hex(const BlockKey& key) {
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(key.data()), key.size()));
}

Fingerprint FromHex(const std::string& hex) {
  const std::string bytes = absl::HexStringToBytes(hex);
  Fingerprint fingerprint;
  std::copy(bytes.begin(), bytes.end(), fingerprint.begin());
  return fingerprint;
}

TEST(Keys, Fingerprints_AreTheGoldenOnes) {
  const auto golden = Golden();
  ASSERT_GE(golden["namespaces"].size(), 2u);
  for (const auto& g : golden["namespaces"]) {
    Descriptor d;
    d.model = g["model"];
    d.weights_digest = g["weights_digest"];
    d.layers = g["layers"];
    d.kv_heads = g["kv_heads"];
    d.head_size = g["head_size"];
    d.dtype = static_cast<DType>(g["dtype"].get<int>());
    d.rope = g["rope"];
    d.codec_set_id = absl::HexStringToBytes(g["codec_set_id"].get<std::string>());
    for (const auto& [key, value] : g["extra"].items()) d.extra[key] = value;
    EXPECT_EQ(Hex(FingerprintOf(d)), g["fingerprint"]);
  }
}

TEST(Keys, Chains_AreTheGoldenOnes) {
  const auto golden = Golden();
  ASSERT_GE(golden["chains"].size(), 2u);
  for (const auto& g : golden["chains"]) {
    KeyChain chain(FromHex(g["fingerprint"]), g["tenant"].get<std::string>(),
                   g["salt"].get<std::string>());
    EXPECT_EQ(Hex(chain.last()), g["root"]);
    const auto tokens = g["tokens"].get<std::vector<uint32_t>>();
    const auto& extra = g["extra"];
    for (size_t i = 0; i < g["keys"].size(); ++i) {
      const std::string bytes =
          i < extra.size() ? absl::HexStringToBytes(extra[i].get<std::string>()) : "";
      const BlockKey key =
          chain.Next(absl::MakeSpan(tokens).subspan(i * kBlockTokens, kBlockTokens), bytes);
      EXPECT_EQ(Hex(key), g["keys"][i]) << i;
    }
  }
}

TEST(Keys, KeysOf_WholeBlocksOnly) {
  const KeyChain chain({}, "tenant", "salt");
  const std::vector<uint32_t> tokens(3 * kBlockTokens - 1, 7);
  const auto keys = KeysOf(chain, tokens);
  ASSERT_EQ(keys.size(), 2u);
  KeyChain again = chain;
  EXPECT_EQ(again.Next(absl::MakeSpan(tokens).subspan(0, kBlockTokens), ""), keys[0]);
  EXPECT_NE(keys[0], keys[1]);
}

}  // namespace
}  // namespace fq::client
