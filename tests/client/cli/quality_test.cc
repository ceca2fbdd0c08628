// The quality contract (DESIGN.md, P7) of a real node, seen through fqctl: traffic that fits its
// codec set and traffic that does not, and blocks beyond the calibrated length.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>

#include "absl/strings/escaping.h"
#include "client/cli/fqctl.h"
#include "kernels/codec_set.h"
#include "tests/testing/fitting_rows.h"
#include "tests/testing/measured_codec_set.h"
#include "tests/testing/node_process.h"

namespace fq::cli {
namespace {

constexpr int kLayers = 2, kHeads = 2, kHeadSize = 64;

// The numbers that server/quality_window.h and deploy/README.md state.
constexpr int kWindow = 32, kRecovery = 132;

constexpr char kLossByLength[] = R"({"loss_by_length": [{"profile": "compact", "tokens": 4096,
    "perplexity_excess_percent": 1.25, "standard_error_percent": 0.3, "kl_divergence": 0.02,
    "top1_agreement_percent": 93.0, "bits_per_value": 2.1, "text": "twice as long"}]})";

using Change = std::function<float(float value, size_t index)>;

class QualityTest : public testing::Test {
 protected:
  QualityTest()
      : folder_("/tmp/fqq-XXXXXX"),
        file_(PatchCodecSet(BuildMeasuredCodecSet(kLayers, kHeads, kHeadSize, 5), kLossByLength)),
        set_(*CodecSet::Parse(file_)) {
    EXPECT_NE(mkdtemp(folder_.data()), nullptr);
    WriteBytes(set_path(), file_.data(), file_.size());
    node_ = std::make_unique<NodeProcess>(
        std::vector<std::string>{"--host-bytes", "32MiB", "--codec-set", set_path(),
                                 "--quality-sample", "1", "--quality-drift-ratio", "1.5"});
  }
  ~QualityTest() override {
    std::remove(set_path().c_str());
    std::remove(folder_.c_str());
  }

  std::string set_path() const { return folder_ + "/model.fqcs"; }

  static void WriteBytes(const std::string& path, const void* bytes, size_t size) {
    std::ofstream(path, std::ios::binary)
        .write(static_cast<const char*>(bytes), static_cast<std::streamsize>(size));
  }

  std::string Text(std::vector<std::string> arguments, ExitCode expected) {
    arguments.insert(arguments.end(), {"--endpoint", node_->endpoint(), "--deadline-ms", "60000"});
    std::ostringstream out, errors;
    EXPECT_EQ(cli::Run(arguments, out, errors), expected) << errors.str();
    return out.str();
  }

  nlohmann::json Fqctl(std::vector<std::string> arguments, ExitCode expected = ExitCode::kOk) {
    arguments.insert(arguments.end(), {"-o", "json"});
    return nlohmann::json::parse(Text(std::move(arguments), expected), nullptr, false);
  }

  // Runs a verb on a chain of its own of that many blocks.
  nlohmann::json OnChain(const std::string& verb, int chain, int blocks,
                         std::vector<std::string> more, ExitCode expected = ExitCode::kOk) {
    const std::string id(reinterpret_cast<const char*>(set_->id().data()), set_->id().size());
    std::vector<std::string> arguments = {verb,
                                          "--namespace",
                                          "t",
                                          "--model",
                                          "synthetic",
                                          "--dtype",
                                          "f32",
                                          "--layers",
                                          "2",
                                          "--kv-heads",
                                          "2",
                                          "--head-size",
                                          "64",
                                          "--codec-set",
                                          absl::BytesToHexString(id),
                                          "--blocks",
                                          std::to_string(blocks),
                                          "--first-token",
                                          std::to_string(100'000 * chain)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return Fqctl(arguments, expected);
  }

  // Stores `blocks` sampled blocks of rows that fit, each value changed.
  void Store(const std::string& profile, int blocks, const Change& change) {
    const std::string pages = node_->folder() + "/pages";
    std::vector<float> rows;
    for (int i = 0; i < blocks; ++i) {
      const std::vector<float> block = FittingBlock(*set_, static_cast<uint64_t>(++blocks_made_));
      rows.insert(rows.end(), block.begin(), block.end());
    }
    rows_ = rows;
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = change(rows_[i], i);
    WriteBytes(pages, rows.data(), rows.size() * sizeof(float));
    const auto put = OnChain("put", ++chains_, blocks, {"--profile", profile, "--file", pages});
    EXPECT_EQ(put["stored"], blocks) << put;
  }

  double Metric(const std::string& name) {
    const auto values = Fqctl({"stats", "--prefix", name});
    return values.value(name, -1.0);
  }
  double Drift(const std::string& profile) {
    return Metric("fq_quality_drift{profile=\"" + profile + "\"}");
  }
  double Ratio(const std::string& profile) {
    return Metric("fq_quality_error_ratio{profile=\"" + profile + "\"}");
  }

  static float AsItIs(float value, size_t) { return value; }

  std::string folder_;
  const std::vector<std::byte> file_;
  const std::shared_ptr<const CodecSet> set_;  // shared by its own factory
  std::unique_ptr<NodeProcess> node_;
  std::vector<float> rows_;  // of the last Store, before they were changed
  int chains_ = 0, blocks_made_ = 0;
};

TEST_F(QualityTest, TrafficThatFits_RatioNearOneAndNoDrift) {
  for (const char* profile : {"compact", "near-lossless"}) {
    EXPECT_EQ(Ratio(profile), 0);
    Store(profile, 20, AsItIs);
    EXPECT_NEAR(Ratio(profile), 1, 0.1) << profile;
    EXPECT_EQ(Drift(profile), 0);
    EXPECT_EQ(Metric(std::string("fq_quality_samples_total{profile=\"") + profile + "\"}"), 20);
  }
  EXPECT_EQ(Metric("fq_codec_sets{expected_error=\"present\"}"), 1);
}

struct Misfit {
  const char* name;
  const char* profile;
  Change change;
};

// Each kind of traffic that the codec set was not made for raises the metric within the stated
// samples, whatever came before, and good traffic lowers it again.
TEST_F(QualityTest, TrafficThatDoesNotFit_DriftsAndRecoversInTheStatedSamples) {
  const float* mean = set_->k(0, 0).mu;
  const Misfit kinds[] = {
      {"scaled", "compact", [](float value, size_t) { return 3 * value; }},
      {"one channel scaled", "compact",
       [](float value, size_t i) { return i % kHeadSize == 5 ? 10 * value : value; }},
      {"another distribution", "compact",
       [&](float, size_t i) { return 3 * mean[(i * 7 + i / kHeadSize) % kHeadSize]; }},
      {"rotated", "near-lossless",
       [&](float, size_t i) { return rows_[i - i % kHeadSize + kHeadSize - 1 - i % kHeadSize]; }}};
  Store("compact", 60, AsItIs);
  Store("near-lossless", 60, AsItIs);
  for (const auto& [name, profile, change] : kinds) {
    SCOPED_TRACE(name);
    EXPECT_EQ(Drift(profile), 0);
    Store(profile, kWindow, change);
    EXPECT_EQ(Drift(profile), 1) << "ratio " << Ratio(profile);
    EXPECT_EQ(Drift("compact") + Drift("near-lossless"), 1);
    Store(profile, kRecovery, AsItIs);
    EXPECT_EQ(Drift(profile), 0) << "ratio " << Ratio(profile);
    EXPECT_NEAR(Ratio(profile), 1, 0.25);
  }
}

TEST_F(QualityTest, NamespaceShow_LossMeasurementAndStateAsTextAndJson) {
  OnChain("lookup", 9, 1, {}, ExitCode::kNotFound);
  const auto before = Fqctl({"namespace", "show", "t"});
  EXPECT_EQ(before["quality"]["compact"]["state"], "no sample yet");
  EXPECT_TRUE(before["quality"]["compact"]["error_ratio"].is_null());
  Store("compact", 7, [](float value, size_t) { return 4 * value; });
  EXPECT_EQ(Fqctl({"namespace", "show", "t"})["quality"]["compact"]["state"],
            "too few samples to tell");
  Store("compact", 33, [](float value, size_t) { return 4 * value; });
  const auto shown = Fqctl({"namespace", "show", "t"});
  EXPECT_EQ(shown["quality"]["compact"]["state"], "drift");
  EXPECT_EQ(shown["quality"]["compact"]["drift"], true);
  EXPECT_EQ(shown["quality"]["compact"]["samples"], 40);
  EXPECT_GT(shown["quality"]["compact"]["error_ratio"], 1.5);
  EXPECT_EQ(shown["quality"]["near-lossless"]["samples"], 0);
  EXPECT_EQ(shown["calibrated_tokens"], 2048);
  EXPECT_EQ(shown["measured_loss"]["compact"]["standard_error_percent"], 0.1);
  EXPECT_EQ(shown["measured_loss"]["compact"]["tokens"], 4096);
  EXPECT_EQ(shown["measured_loss"]["compact"]["text"], "synthetic");
  ASSERT_EQ(shown["loss_by_length"].size(), 1u);
  EXPECT_EQ(shown["loss_by_length"][0]["profile"], "compact");
  EXPECT_EQ(shown["loss_by_length"][0]["perplexity_excess_percent"], 1.25);
  const std::string text = Text({"namespace", "show", "t"}, ExitCode::kOk);
  for (const char* part : {"drift", "twice as long", "standard_error_percent", "error_ratio"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in\n" << text;
  }
}

TEST_F(QualityTest, BeyondTheCalibratedLength_CountedAndWarnedOnce) {
  Store("compact", 32, AsItIs);
  EXPECT_EQ(Metric("fq_blocks_beyond_calibration_total{length=\"calibrated\",operation=\"store\"}"),
            0);
  Store("compact", 70, AsItIs);  // calibrated at 32 blocks
  EXPECT_EQ(Metric("fq_blocks_beyond_calibration_total{length=\"calibrated\",operation=\"store\"}"),
            32);
  EXPECT_EQ(Metric("fq_blocks_beyond_calibration_total{length=\"twice\",operation=\"store\"}"), 6);
  const std::string got = node_->folder() + "/got";
  EXPECT_EQ(OnChain("get", chains_, 70, {"--file", got})["loaded_blocks"], 70);
  EXPECT_EQ(Metric("fq_blocks_beyond_calibration_total{length=\"twice\",operation=\"load\"}"), 6);
  std::ifstream in(node_->folder() + "/log");
  const std::string log((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  for (const std::string event :
       {" beyond_calibrated_length ", " beyond_twice_calibrated_length "}) {
    const size_t first = log.find(event);
    ASSERT_NE(first, std::string::npos) << log;
    EXPECT_EQ(log.find(event, first + 1), std::string::npos) << log;
  }
}

TEST(QualityOfAnOlderCodecSet, NoExpectation_IsSaidAndNothingIsChecked) {
  constexpr char kOlder[] = FQ_SOURCE_DIR "/tests/golden/codec_set_d64.fqcs";
  const auto set = *CodecSet::Load(kOlder);
  NodeProcess node({"--host-bytes", "16MiB", "--codec-set", kOlder, "--quality-sample", "1"});
  const std::string id(reinterpret_cast<const char*>(set->id().data()), set->id().size());
  const auto fqctl = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.end(),
                     {"--endpoint", node.endpoint(), "-o", "json", "--deadline-ms", "60000"});
    std::ostringstream out, errors;
    EXPECT_EQ(cli::Run(arguments, out, errors), ExitCode::kOk) << errors.str();
    return nlohmann::json::parse(out.str(), nullptr, false);
  };
  const std::vector<float> rows = FittingBlock(*set, 1);
  std::ofstream(node.folder() + "/pages", std::ios::binary)
      .write(reinterpret_cast<const char*>(rows.data()),
             static_cast<std::streamsize>(rows.size() * sizeof(float)));
  fqctl({"put",
         "--namespace",
         "t",
         "--model",
         "m",
         "--dtype",
         "f32",
         "--layers",
         std::to_string(set->layers()),
         "--kv-heads",
         std::to_string(set->kv_heads()),
         "--head-size",
         "64",
         "--codec-set",
         absl::BytesToHexString(id),
         "--blocks",
         "1",
         "--profile",
         "compact",
         "--file",
         node.folder() + "/pages"});
  const auto quality = fqctl({"namespace", "show", "t"})["quality"]["compact"];
  EXPECT_EQ(quality["state"], "no expectation in the codec set");
  EXPECT_EQ(quality["samples"], 0);
  const auto stats = fqctl({"stats", "--prefix", "fq_"});
  EXPECT_EQ(stats["fq_codec_sets{expected_error=\"absent\"}"], 1);
  EXPECT_EQ(stats["fq_quality_samples_total{profile=\"compact\"}"], 0);
  EXPECT_EQ(stats["fq_quality_error_ratio{profile=\"compact\"}"], 0);
}

}  // namespace
}  // namespace fq::cli
