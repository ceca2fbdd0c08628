#include "server/descriptor.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"

namespace fq {
namespace {

Descriptor Base() {
  Descriptor d;
  d.model = "m";
  d.weights_digest = "w";
  d.layers = 2;
  d.kv_heads = 3;
  d.head_size = 64;
  d.dtype = DType::kF16;
  d.rope = "r";
  d.codec_set_id = std::string(32, '\1');
  d.extra = {{"k", "v"}};
  return d;
}

TEST(Descriptor, GoldenVectors_HaveTheirFingerprints) {
  std::ifstream in(FQ_SOURCE_DIR "/tests/golden/keys.json");
  const auto golden = nlohmann::json::parse(in);
  ASSERT_FALSE(golden["namespaces"].empty());
  for (const auto& n : golden["namespaces"]) {
    Descriptor d;
    d.model = n["model"];
    d.weights_digest = n["weights_digest"];
    d.layers = n["layers"];
    d.kv_heads = n["kv_heads"];
    d.head_size = n["head_size"];
    d.dtype = static_cast<DType>(n["dtype"].get<int>() - 1);
    d.rope = n["rope"];
    d.codec_set_id = absl::HexStringToBytes(n["codec_set_id"].get<std::string>());
    d.extra = n["extra"].get<std::map<std::string, std::string>>();
    const Fingerprint f = FingerprintOf(d);
    EXPECT_EQ(absl::BytesToHexString(std::string(f.begin(), f.end())),
              n["fingerprint"].get<std::string>());
  }
}

struct Change {
  std::string field, ours, theirs;
  std::function<void(Descriptor&)> apply;
};

TEST(Descriptor, AnyFieldChanged_IsNamedWithBothValues) {
  const Change changes[] = {
      {"model", "'m'", "'n'", [](Descriptor& d) { d.model = "n"; }},
      {"weights_digest", "'w'", "''", [](Descriptor& d) { d.weights_digest = ""; }},
      {"layers", "2", "9", [](Descriptor& d) { d.layers = 9; }},
      {"kv_heads", "3", "9", [](Descriptor& d) { d.kv_heads = 9; }},
      {"head_size", "64", "128", [](Descriptor& d) { d.head_size = 128; }},
      {"dtype", "1", "3", [](Descriptor& d) { d.dtype = DType::kF32; }},
      {"rope", "'r'", "'q'", [](Descriptor& d) { d.rope = "q"; }},
      {"codec_set_id", "0101", "0202",
       [](Descriptor& d) { d.codec_set_id = std::string(32, '\2'); }},
      {"codec_set_id", "0101", "none", [](Descriptor& d) { d.codec_set_id.clear(); }},
      {"extra key", "'k'", "'l'",
       [](Descriptor& d) {
         d.extra = {{"l", "v"}};
       }},
      {"extra[k]", "'v'", "'x'", [](Descriptor& d) { d.extra["k"] = "x"; }},
      {"extra", "1", "2", [](Descriptor& d) { d.extra["z"] = ""; }},
      {"extra", "1", "0", [](Descriptor& d) { d.extra.clear(); }},
  };
  for (const Change& change : changes) {
    Descriptor changed = Base();
    change.apply(changed);
    const absl::Status status = CheckSame(Base(), changed);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << change.field;
    for (const std::string& part : {change.field, change.ours, change.theirs}) {
      EXPECT_NE(status.message().find(part), absl::string_view::npos) << status;
    }
    EXPECT_NE(FingerprintOf(Base()), FingerprintOf(changed)) << change.field;
  }
  EXPECT_TRUE(CheckSame(Base(), Base()).ok());
}

TEST(Descriptor, BytesMovedBetweenFields_ChangeTheFingerprint) {
  Descriptor a = Base(), b = Base();
  a.model = "ab";
  a.weights_digest = "c";
  b.model = "a";
  b.weights_digest = "bc";
  EXPECT_NE(FingerprintOf(a), FingerprintOf(b));
}

}  // namespace
}  // namespace fq
