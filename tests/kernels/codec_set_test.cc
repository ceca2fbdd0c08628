#include "kernels/codec_set.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/codec_set_builder.h"

namespace fq {
namespace {

using ::testing::HasSubstr;

std::vector<std::byte> SmallFile() { return BuildCodecSet(2, 3, 64, 7); }

size_t JsonBytes(const std::vector<std::byte>& file) {
  uint64_t bytes;
  std::memcpy(&bytes, file.data() + 16, sizeof(bytes));
  return bytes;
}

size_t ArraysOffset(const std::vector<std::byte>& file) {
  return (64 + JsonBytes(file) + 63) / 64 * 64;
}

// Replaces the first occurrence of a text in the JSON by another of the same length.
std::vector<std::byte> WithJson(std::vector<std::byte> file, const std::string& from,
                                const std::string& to) {
  EXPECT_EQ(from.size(), to.size());
  char* json = reinterpret_cast<char*>(file.data() + 64);
  const size_t at = std::string(json, JsonBytes(file)).find(from);
  EXPECT_NE(at, std::string::npos) << from;
  std::copy(to.begin(), to.end(), json + at);
  SealCodecSet(&file);
  return file;
}

void ExpectRefused(std::vector<std::byte> file, const std::string& message) {
  const auto set = CodecSet::Parse(std::move(file));
  ASSERT_FALSE(set.ok()) << message;
  EXPECT_EQ(set.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(set.status().message()), HasSubstr(message));
}

TEST(CodecSetParse, WholeFile_HasShapeProfilesAndArrays) {
  const auto set = CodecSet::Parse(SmallFile());
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ((*set)->model(), "synthetic");
  EXPECT_EQ((*set)->layers(), 2);
  EXPECT_EQ((*set)->kv_heads(), 3);
  EXPECT_EQ((*set)->head_size(), 64);
  EXPECT_EQ((*set)->calibrated_tokens(), 2048);
  EXPECT_EQ((*set)->profile(0, 0).k, (std::vector<uint8_t>{8, 4, 2, 2, 1, 0, 0, 0}));
  EXPECT_EQ((*set)->profile(1, 2).v, (*set)->profile(0, 1).v);
  EXPECT_DOUBLE_EQ((*set)->compact_loss().bits_per_value, 2.1);
  EXPECT_EQ((*set)->near_lossless_loss().tokens, 4096);
  EXPECT_NE((*set)->k(0, 0).mu[0], (*set)->v(0, 0).mu[0]);
}

TEST(CodecSetParse, EveryHeadSize_TransformsAreInverse) {
  for (int d : {64, 96, 128, 256}) {
    const auto set = CodecSet::Parse(BuildCodecSet(1, 1, d, 3));
    ASSERT_TRUE(set.ok()) << set.status();
    const HeadCodec& codec = (*set)->v(0, 0);
    double worst = 0;
    for (int i = 0; i < d; ++i) {
      for (int j = 0; j < d; ++j) {
        double sum = i == j ? -1 : 0;
        for (int k = 0; k < d; ++k) {
          sum += static_cast<double>(codec.a[i * d + k]) * codec.a_inv[k * d + j];
        }
        worst = std::max(worst, std::abs(sum));
      }
    }
    EXPECT_LT(worst, 1e-6) << d;
  }
}

TEST(CodecSetLoad, MissingFile_NotFound) {
  const auto set = CodecSet::Load("/no/such.fqcs");
  EXPECT_EQ(set.status().code(), absl::StatusCode::kNotFound);
}

TEST(CodecSetLoad, Directory_NotFound) {
  EXPECT_EQ(CodecSet::Load("/tmp").status().code(), absl::StatusCode::kNotFound);
}

TEST(CodecSetParse, OtherMagicVersionOrLength_Refused) {
  auto file = SmallFile();
  file[0] = std::byte{'X'};
  ExpectRefused(file, "magic is XQCS");
  file = SmallFile();
  file[4] = std::byte{2};
  ExpectRefused(file, "version is 2, expected 1");
  file = SmallFile();
  file.pop_back();
  ExpectRefused(file, "length is");
  ExpectRefused({}, "file is 0 bytes");
}

TEST(CodecSetParse, AnyChangedByte_ShaRefused) {
  auto file = SmallFile();
  file.back() ^= std::byte{1};
  ExpectRefused(file, "SHA-256");
}

TEST(CodecSetParse, JsonLengthBeyondFile_Refused) {
  auto file = SmallFile();
  const uint64_t huge = ~uint64_t{0} - 10;
  std::memcpy(file.data() + 16, &huge, sizeof(huge));
  SealCodecSet(&file);
  ExpectRefused(file, "JSON length");
}

TEST(CodecSetParse, OptionalKeys_AreReadOrRefused) {
  const auto plain = CodecSet::Parse(SmallFile()).value();
  EXPECT_TRUE(plain->expected_error().compact.empty());
  EXPECT_TRUE(plain->loss_by_length().empty());
  const std::string errors = "[[[1,2],[3,4],[5,6]],[[7,8],[9,10],[11,12]]]";
  const auto set =
      CodecSet::Parse(PatchCodecSet(SmallFile(), "{\"expected_error\":{\"compact\":" + errors +
                                                     ",\"near-lossless\":" + errors + "}}"));
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ((*set)->expected_error().near_lossless.size(), 12u);
  EXPECT_EQ((*set)->expected_error().compact[5], 6);
  EXPECT_NE((*set)->id(), plain->id());
  ExpectRefused(PatchCodecSet(SmallFile(), "{\"expected_error\":{\"compact\":[]}}"),
                "expected_error: compact is 0 items, expected 2");
  ExpectRefused(PatchCodecSet(SmallFile(), "{\"loss_by_length\":{}}"),
                "loss_by_length is object, expected an array");
}

TEST(CodecSetParse, BadJsonFields_RefusedByName) {
  ExpectRefused(WithJson(SmallFile(), "\"k\":[8,4", "\"k\":[8,3"), "k is 3, expected a class");
  ExpectRefused(WithJson(SmallFile(), "\"model\":", "\"modem\":"), "model is missing");
  ExpectRefused(WithJson(SmallFile(), "\"layers\":2", "\"layers\":3"), "2 layers, expected 3");
  ExpectRefused(WithJson(SmallFile(), "\"layers\":2", "\"layers\":0"), "layers is 0");
  ExpectRefused(WithJson(SmallFile(), "\"head_size\":64", "\"head_size\":80"), "head_size is 80");
  ExpectRefused(WithJson(SmallFile(), "\"profile_of\":[[0", "\"profile_of\":[[4"), "profile_of");
  ExpectRefused(WithJson(SmallFile(), "\"tokens\":4096", "\"tokens\":null"), "tokens is null");
  ExpectRefused(WithJson(SmallFile(), "{\"calib", "[\"calib"), "JSON");
}

TEST(CodecSetParse, NotFiniteValues_Refused) {
  auto file = SmallFile();
  const size_t arrays = ArraysOffset(file);
  const float infinity = std::numeric_limits<float>::infinity();
  std::memcpy(file.data() + arrays + 40, &infinity, sizeof(infinity));
  SealCodecSet(&file);
  ExpectRefused(file, "K of layer 0, head 0");
  file = SmallFile();
  const uint32_t chain = 0x007C0000;  // (1, 1) = f16(b2:b1) = 7C00
  std::memcpy(file.data() + file.size() - 4, &chain, sizeof(chain));
  SealCodecSet(&file);
  ExpectRefused(file, "V of layer 1, head 2");
}

}  // namespace
}  // namespace fq
