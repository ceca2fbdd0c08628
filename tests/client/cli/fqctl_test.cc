// Every verb against a real node: what it prints and how it ends.
#include "client/cli/fqctl.h"

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <regex>
#include <sstream>

#include "client/cli/files.h"
#include "tests/testing/eventually.h"
#include "tests/testing/node_process.h"

namespace fq::cli {
namespace {

struct Ran {
  ExitCode code;
  std::string out, errors;
  nlohmann::json json() const { return nlohmann::json::parse(out); }
};

Ran RunFqctl(const std::vector<std::string>& arguments) {
  std::ostringstream out, errors;
  const ExitCode code = Run(arguments, out, errors);
  return {code, out.str(), errors.str()};
}

class FqctlTest : public testing::Test {
 protected:
  static constexpr size_t kBlockBytes = 2 * 2 * 2 * 64 * 64 * 2;

  Ran Fqctl(std::vector<std::string> arguments,
            std::chrono::milliseconds deadline = kPatience) const {
    arguments.insert(arguments.end(), {"--endpoint", node_.endpoint(), "-o", "json",
                                       "--deadline-ms", std::to_string(deadline.count())});
    return RunFqctl(arguments);
  }

  // A verb on blocks of namespace "t", which the flags describe.
  Ran OnPrefix(const std::string& verb, uint32_t blocks, std::vector<std::string> more) const {
    std::vector<std::string> arguments = {
        verb,       "--namespace", "t",          "--model",  "m",
        "--layers", "2",           "--kv-heads", "2",        "--head-size",
        "64",       "--dtype",     "f16",        "--blocks", std::to_string(blocks)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return Fqctl(arguments);
  }

  std::string PagesFile(uint32_t blocks) const {
    const std::string path = node_.folder() + "/pages";
    std::mt19937_64 random(1);
    std::ofstream out(path, std::ios::binary);
    for (size_t i = 0; i < blocks * kBlockBytes / 2; ++i) {
      const auto value = static_cast<uint16_t>(0x3000 | (random() & 0x8fff));
      out.write(reinterpret_cast<const char*>(&value), sizeof(value));
    }
    return path;
  }

  NodeProcess node_{{"--host-bytes", "16MiB"}};
};

TEST_F(FqctlTest, Status_SaysWhatTheNodeIs) {
  const Ran ran = Fqctl({"status"});
  EXPECT_EQ(ran.code, ExitCode::kOk) << ran.errors;
  EXPECT_EQ(ran.json()["state"], "serving");
  EXPECT_EQ(ran.json()["host_capacity_bytes"], 16 << 20);
  EXPECT_EQ(ran.json()["device_capacity_bytes"], 0);
  EXPECT_EQ(ran.json()["device_used_bytes"], 0);
}

TEST_F(FqctlTest, PutThenGet_GivesTheSameFile) {
  const std::string pages = PagesFile(3), got = node_.folder() + "/got";
  const Ran put = OnPrefix("put", 3, {"--profile", "exact", "--file", pages});
  EXPECT_EQ(put.code, ExitCode::kOk) << put.errors;
  EXPECT_EQ(put.json()["stored"], 3);
  EXPECT_EQ(OnPrefix("put", 3, {"--profile", "exact", "--file", pages}).json()["existed"], 3);
  const Ran get = OnPrefix("get", 3, {"--file", got});
  EXPECT_EQ(get.code, ExitCode::kOk) << get.errors;
  EXPECT_EQ(*ReadFile("file", got), *ReadFile("file", pages));
}

TEST_F(FqctlTest, Get_MoreThanThereIs_WritesThePrefixAndMisses) {
  const std::string pages = PagesFile(2), got = node_.folder() + "/got";
  ASSERT_EQ(OnPrefix("put", 2, {"--profile", "exact", "--file", pages}).code, ExitCode::kOk);
  const Ran get = OnPrefix("get", 5, {"--file", got});
  EXPECT_EQ(get.code, ExitCode::kNotFound);
  EXPECT_EQ(get.json()["loaded_blocks"], 2);
  EXPECT_EQ(*ReadFile("file", got), *ReadFile("file", pages));
}

TEST_F(FqctlTest, Fetch_BringsAPrefixFromTheOtherNode) {
  ASSERT_EQ(OnPrefix("put", 2, {"--profile", "exact", "--file", PagesFile(2)}).code, ExitCode::kOk);
  NodeProcess other({"--host-bytes", "16MiB", "--fetch-from", node_.endpoint()});
  const auto fetch = [&](const std::string& from, const char* blocks) {
    return RunFqctl({"fetch",
                     "--from",
                     from,
                     "--namespace",
                     "t",
                     "--model",
                     "m",
                     "--layers",
                     "2",
                     "--kv-heads",
                     "2",
                     "--head-size",
                     "64",
                     "--dtype",
                     "f16",
                     "--blocks",
                     blocks,
                     "--endpoint",
                     other.endpoint(),
                     "-o",
                     "json",
                     "--deadline-ms",
                     "60000"});
  };
  const Ran all = fetch(node_.endpoint(), "2");
  EXPECT_EQ(all.code, ExitCode::kOk) << all.errors;
  EXPECT_EQ(all.json()["fetched"], 2);
  EXPECT_EQ(all.json()["stopped"], "");
  const Ran more = fetch(node_.endpoint(), "3");
  EXPECT_EQ(more.code, ExitCode::kNotFound);
  EXPECT_EQ(more.json()["existed"], 2);
  EXPECT_EQ(more.json()["missing"], 1);
  node_.Kill();
  const Ran gone = fetch(node_.endpoint(), "3");
  EXPECT_EQ(gone.code, ExitCode::kUnavailable);
  EXPECT_NE(gone.json()["stopped"], "");
  EXPECT_EQ(fetch(node_.endpoint(), "2").code, ExitCode::kOk);  // all is here: nobody is asked
  const Ran elsewhere = fetch("unix:///elsewhere", "2");
  EXPECT_EQ(elsewhere.code, ExitCode::kPermission) << elsewhere.errors;
  EXPECT_NE(elsewhere.errors.find("--fetch-from"), std::string::npos);
}

TEST_F(FqctlTest, Put_FileOfAnotherSize_NamesBoth) {
  const Ran put = OnPrefix("put", 3, {"--profile", "exact", "--file", PagesFile(2)});
  EXPECT_EQ(put.code, ExitCode::kUsage);
  EXPECT_NE(put.errors.find("131072 bytes; 3 blocks of 65536 bytes are 196608"), std::string::npos)
      << put.errors;
}

TEST_F(FqctlTest, Put_CompactWithoutCodecSet_IsAMismatch) {
  const Ran put = OnPrefix("put", 1, {"--profile", "compact", "--file", PagesFile(1)});
  EXPECT_EQ(put.code, ExitCode::kMismatch) << put.errors;
}

TEST_F(FqctlTest, Lookup_CountsWhatIsThere) {
  EXPECT_EQ(OnPrefix("lookup", 2, {}).code, ExitCode::kNotFound);
  ASSERT_EQ(OnPrefix("put", 2, {"--profile", "universal", "--file", PagesFile(2)}).code,
            ExitCode::kOk);
  const Ran all = OnPrefix("lookup", 2, {});
  EXPECT_EQ(all.code, ExitCode::kOk) << all.errors;
  EXPECT_EQ(all.json()["matched_tokens"], 128);
  EXPECT_EQ(all.json()["blocks_by_profile"]["universal"], 2);
  EXPECT_EQ(OnPrefix("lookup", 2, {"--salt", "x"}).code, ExitCode::kNotFound);
}

TEST_F(FqctlTest, Lookup_WithoutModel_AsksTheNodeForIt) {
  EXPECT_EQ(Fqctl({"lookup", "--namespace", "t", "--blocks", "1"}).code, ExitCode::kNotFound);
  OnPrefix("put", 1, {"--profile", "exact", "--file", PagesFile(1)});
  EXPECT_EQ(Fqctl({"lookup", "--namespace", "t", "--blocks", "1"}).code, ExitCode::kOk);
}

TEST_F(FqctlTest, Lookup_TokensFile_IsThePrefix) {
  OnPrefix("put", 1, {"--profile", "exact", "--file", PagesFile(1)});
  const std::string tokens = node_.folder() + "/tokens";
  std::ofstream out(tokens);
  for (int i = 0; i < 70; ++i) out << i << '\n';
  out.close();
  EXPECT_EQ(Fqctl({"lookup", "--namespace", "t", "--tokens", tokens}).code, ExitCode::kOk);
}

TEST_F(FqctlTest, Lookup_OtherModel_IsAMismatch) {
  OnPrefix("put", 1, {"--profile", "exact", "--file", PagesFile(1)});
  EXPECT_EQ(OnPrefix("lookup", 1, {"--rope", "other"}).code, ExitCode::kMismatch);
}

TEST_F(FqctlTest, Namespace_ListShowPurge) {
  OnPrefix("put", 2, {"--profile", "exact", "--file", PagesFile(2)});
  EXPECT_EQ(Fqctl({"namespace", "list"}).json()[0]["name"], "t");
  const Ran show = Fqctl({"namespace", "show", "t"});
  EXPECT_EQ(show.json()["descriptor"]["head_size"], 64);
  EXPECT_EQ(show.json()["blocks_by_profile"]["exact"], 2);
  EXPECT_EQ(show.json()["measured_loss"].size(), 0u);
  EXPECT_EQ(Fqctl({"namespace", "show", "no"}).code, ExitCode::kNotFound);
  EXPECT_EQ(Fqctl({"namespace", "purge", "t"}).code, ExitCode::kUsage);
  EXPECT_EQ(Fqctl({"namespace", "purge", "t", "--yes"}).json()["blocks"], 2);
  EXPECT_EQ(OnPrefix("lookup", 1, {}).code, ExitCode::kNotFound);
}

TEST_F(FqctlTest, Verify_ChecksEveryBlock) {
  OnPrefix("put", 2, {"--profile", "universal", "--file", PagesFile(2)});
  const Ran verify = Fqctl({"verify", "--namespace", "t"});
  EXPECT_EQ(verify.code, ExitCode::kOk) << verify.errors;
  EXPECT_EQ(verify.json()["blocks"], 2);
  EXPECT_EQ(verify.json()["failed"], 0);
}

TEST_F(FqctlTest, Stats_PrefixSelects) {
  const auto all = Fqctl({"stats"}).json(), some = Fqctl({"stats", "--prefix", "fq_req"}).json();
  EXPECT_GT(all.size(), some.size());
  for (const auto& [name, value] : some.items()) EXPECT_EQ(name.rfind("fq_req", 0), 0u);
  const Ran none = Fqctl({"stats", "--prefix", "fq_reqq"});
  EXPECT_EQ(none.code, ExitCode::kNotFound);
  EXPECT_NE(none.errors.find("--prefix = fq_reqq"), std::string::npos) << none.errors;
}

TEST_F(FqctlTest, Top_PrintsOneLinePerLook) {
  const Ran top = Fqctl({"top", "--count", "3", "--interval-ms", "10"});
  EXPECT_EQ(top.code, ExitCode::kOk) << top.errors;
  EXPECT_EQ(std::count(top.out.begin(), top.out.end(), '\n'), 3);
}

TEST_F(FqctlTest, Bench_MeasuresThreeOperationsAndCleansUp) {
  const Ran bench = Fqctl({"bench", "--layers", "2", "--kv-heads", "1", "--calls", "3",
                           "--blocks-per-call", "2", "--profile", "universal"});
  EXPECT_EQ(bench.code, ExitCode::kOk) << bench.errors;
  ASSERT_EQ(bench.json().size(), 3u);
  for (const auto& row : bench.json()) EXPECT_EQ(row["calls"], 3) << row;
  EXPECT_GT(bench.json()[2]["gb_per_second"], 0);
  EXPECT_EQ(Fqctl({"status"}).json()["blocks"], 0);
}

TEST_F(FqctlTest, FrozenNode_IsUnavailableInTime) {
  node_.Freeze();
  const Ran ran = Fqctl({"status"}, std::chrono::milliseconds(100));
  EXPECT_EQ(ran.code, ExitCode::kUnavailable);
  node_.Thaw();
}

TEST(Fqctl, NobodyThere_IsUnavailable) {
  const Ran ran = RunFqctl({"status", "--endpoint", "unix:///nowhere/s"});
  EXPECT_EQ(ran.code, ExitCode::kUnavailable);
  EXPECT_NE(ran.errors.find("(UNAVAILABLE)"), std::string::npos) << ran.errors;
}

TEST(Fqctl, Environment_SetsFlags) {
  setenv("FQCTL_ENDPOINT", "unix:///from/environment", 1);
  const Ran ran = RunFqctl({"status"});
  unsetenv("FQCTL_ENDPOINT");
  EXPECT_NE(ran.errors.find("/from/environment"), std::string::npos) << ran.errors;
}

// As `fqctl status` says of the node, for who compares the two.
TEST(Fqctl, Version_IsPrinted) {
  const Ran ran = RunFqctl({"--version"});
  EXPECT_EQ(ran.code, ExitCode::kOk);
  EXPECT_TRUE(std::regex_match(ran.out, std::regex("fqctl [0-9]+\\.[0-9]+\\.[0-9]+\n"))) << ran.out;
}

TEST(Fqctl, Help_NamesExitCodesAndRpcs) {
  const Ran ran = RunFqctl({"--help"});
  EXPECT_EQ(ran.code, ExitCode::kOk);
  EXPECT_NE(ran.out.find("4 unavailable or timeout"), std::string::npos);
  for (const char* verb :
       {"status", "put", "get", "lookup", "verify", "namespace", "stats", "top", "bench"}) {
    EXPECT_NE(RunFqctl({verb, "--help"}).out.find("RPC"), std::string::npos) << verb;
  }
}

TEST(Fqctl, WrongUsage_IsUsage) {
  EXPECT_EQ(RunFqctl({}).code, ExitCode::kUsage);
  EXPECT_EQ(RunFqctl({"frobnicate"}).code, ExitCode::kUsage);
  EXPECT_EQ(RunFqctl({"put"}).code, ExitCode::kUsage);
  EXPECT_EQ(RunFqctl({"status", "-o", "xml"}).code, ExitCode::kUsage);
  EXPECT_EQ(RunFqctl({"status", "--deadline-ms", "0"}).code, ExitCode::kUsage);
}

// What a person reads who has mistyped it: the flag, what it was, what it may be. A file that is
// not there is no data error, which says that a block is damaged.
TEST(Fqctl, WrongUsage_NamesFlagAndValue) {
  const std::pair<std::vector<std::string>, std::vector<std::string>> rows[] = {
      {{"frobnicate"}, {"'frobnicate'"}},
      {{"namespace", "shwo"}, {"'shwo'"}},
      {{"put"}, {"--namespace is required"}},
      {{"status", "-o", "xml"}, {"--output", "xml", "table", "json"}},
      {{"lookup", "--namespace", "n", "--floor", "universal"},
       {"--floor", "universal", "near-lossless"}},
      {{"put", "--namespace", "n", "--file", "f", "--profile", "int4"},
       {"--profile", "int4", "universal"}},
      {{"lookup", "--namespace", "n", "--dtype", "fp8"}, {"--dtype", "fp8", "bf16"}},
      {{"lookup", "--namespace", "n", "--tokens", "/nowhere/t"}, {"--tokens", "/nowhere/t"}},
      {{"put", "--namespace", "n", "--blocks", "1", "--file", "/nowhere/f"},
       {"--file", "/nowhere/f"}},
      {{"status", "--tls-ca", "/nowhere/ca"}, {"--tls-ca", "/nowhere/ca"}},
      {{"status", "--endpoint", "/run/s"}, {"endpoint = /run/s", "unix:///path or host:port"}},
  };
  for (const auto& [arguments, parts] : rows) {
    const Ran ran = RunFqctl(arguments);
    EXPECT_EQ(ran.code, ExitCode::kUsage) << ran.errors;
    for (const std::string& part : parts) {
      EXPECT_NE(ran.errors.find(part), std::string::npos) << part << " is not in " << ran.errors;
    }
  }
}

TEST(ExitCode, EveryStatus_HasOne) {
  EXPECT_EQ(ExitCodeOf(absl::ResourceExhaustedError("")), ExitCode::kExhausted);
  EXPECT_EQ(ExitCodeOf(absl::PermissionDeniedError("")), ExitCode::kPermission);
  EXPECT_EQ(ExitCodeOf(absl::UnauthenticatedError("")), ExitCode::kPermission);
  EXPECT_EQ(ExitCodeOf(absl::DeadlineExceededError("")), ExitCode::kUnavailable);
  EXPECT_EQ(ExitCodeOf(absl::UnknownError("")), ExitCode::kUnavailable);
  EXPECT_EQ(ExitCodeOf(absl::DataLossError("")), ExitCode::kData);
  EXPECT_EQ(ExitCodeOf(absl::OkStatus()), ExitCode::kOk);
}

}  // namespace
}  // namespace fq::cli
