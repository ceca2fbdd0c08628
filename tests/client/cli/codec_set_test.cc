// fqctl on a namespace with a codec set: profiles, the tail rule, and the loss that was measured.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "absl/strings/escaping.h"
#include "client/cli/fqctl.h"
#include "kernels/codec_set.h"
#include "tests/testing/node_process.h"

namespace fq::cli {
namespace {

constexpr char kCodecSet[] = FQ_SOURCE_DIR "/tests/golden/codec_set_d64.fqcs";
constexpr int kBlocks = 6;

class CodecSetTest : public testing::Test {
 protected:
  CodecSetTest() : set_(*CodecSet::Load(kCodecSet)), pages_(node_.folder() + "/pages") {
    std::mt19937_64 random(1);
    std::ofstream out(pages_, std::ios::binary);
    const int values = kBlocks * set_->layers() * set_->kv_heads() * 2 * 64 * set_->head_size();
    for (int i = 0; i < values; ++i) {
      const auto value = static_cast<uint16_t>(0x3000 | (random() & 0x8fff));  // finite FP16
      out.write(reinterpret_cast<const char*>(&value), sizeof(value));
    }
  }

  nlohmann::json Fqctl(std::vector<std::string> arguments, ExitCode expected) {
    arguments.insert(arguments.end(),
                     {"--endpoint", node_.endpoint(), "-o", "json", "--deadline-ms", "60000"});
    std::ostringstream out, errors;
    EXPECT_EQ(cli::Run(arguments, out, errors), expected) << errors.str();
    return nlohmann::json::parse(out.str(), nullptr, false);
  }

  nlohmann::json OnPrefix(const std::string& verb, std::vector<std::string> more,
                          ExitCode expected) {
    const std::string id(reinterpret_cast<const char*>(set_->id().data()), set_->id().size());
    std::vector<std::string> arguments = {verb,
                                          "--namespace",
                                          "t",
                                          "--model",
                                          set_->model(),
                                          "--dtype",
                                          "f16",
                                          "--layers",
                                          std::to_string(set_->layers()),
                                          "--kv-heads",
                                          std::to_string(set_->kv_heads()),
                                          "--head-size",
                                          std::to_string(set_->head_size()),
                                          "--codec-set",
                                          absl::BytesToHexString(id),
                                          "--blocks",
                                          std::to_string(kBlocks)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return Fqctl(arguments, expected);
  }

  NodeProcess node_{{"--host-bytes", "16MiB", "--codec-set", kCodecSet}};
  const std::shared_ptr<const CodecSet> set_;  // shared by its own factory
  const std::string pages_;
};

TEST_F(CodecSetTest, Compact_KeepsItsTailNearLossless) {
  OnPrefix("put", {"--profile", "compact", "--file", pages_}, ExitCode::kOk);
  const auto match = OnPrefix("lookup", {}, ExitCode::kOk);
  EXPECT_EQ(match["blocks_by_profile"]["compact"], kBlocks - 2);
  EXPECT_EQ(match["blocks_by_profile"]["near-lossless"], 2);
  EXPECT_EQ(match["usable_blocks"], kBlocks);
}

TEST_F(CodecSetTest, Floor_GivesAMissRatherThanLess) {
  OnPrefix("put", {"--profile", "compact", "--file", pages_}, ExitCode::kOk);
  const auto match = OnPrefix("lookup", {"--floor", "near-lossless"}, ExitCode::kNotFound);
  EXPECT_EQ(match["matched_blocks"], 0);
}

TEST_F(CodecSetTest, NearLossless_LoadsEveryBlock) {
  OnPrefix("put", {"--profile", "near-lossless", "--file", pages_}, ExitCode::kOk);
  const auto got = OnPrefix("get", {"--floor", "near-lossless", "--file", node_.folder() + "/got"},
                            ExitCode::kOk);
  EXPECT_EQ(got["loaded_blocks"], kBlocks);
}

TEST_F(CodecSetTest, NamespaceShow_PrintsTheMeasuredLoss) {
  OnPrefix("put", {"--profile", "compact", "--file", pages_}, ExitCode::kOk);
  const auto loss = Fqctl({"namespace", "show", "t"}, ExitCode::kOk)["measured_loss"];
  EXPECT_EQ(loss["compact"]["bits_per_value"], set_->compact_loss().bits_per_value);
  EXPECT_EQ(loss["near-lossless"]["perplexity_excess_percent"],
            set_->near_lossless_loss().perplexity_excess_percent);
}

TEST_F(CodecSetTest, UnknownCodecSet_IsAMismatch) {
  Fqctl({"lookup", "--namespace", "u", "--model", "m", "--layers", "1", "--kv-heads", "1",
         "--head-size", "64", "--blocks", "1", "--codec-set", std::string(64, '7')},
        ExitCode::kMismatch);
}

}  // namespace
}  // namespace fq::cli
