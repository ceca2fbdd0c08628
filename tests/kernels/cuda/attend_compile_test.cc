#include "kernels/cuda/attend_compile.h"

#include <filesystem>
#include <fstream>

#include "gtest/gtest.h"
#include "kernels/cuda/attend_heads.h"
#include "tests/testing/codec_set_builder.h"

namespace fq {
namespace {

AttendVariant Variant(int head_size, bool bf16) {
  AttendVariant variant;
  variant.head_size = head_size;
  variant.bf16 = bf16;
  auto set = CodecSet::Parse(BuildCodecSet(1, 1, head_size, 5));
  EXPECT_TRUE(set.ok()) << set.status();
  const CodecProfile& profile = (*set)->profile(0, 0);
  variant.instances.push_back({profile.k, profile.v, {}, {}});
  return variant;
}

// No GPU is needed to compile for one.
TEST(AttendCompileTest, EveryArchitecture_CompilesToItsOwnCode) {
  std::vector<char> previous;
  for (const char* architecture : {"sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"}) {
    auto code = CompileAttend(Variant(128, false), architecture, "");
    ASSERT_TRUE(code.ok()) << architecture << ": " << code.status();
    EXPECT_EQ(std::string(code->data() + 1, 3), "ELF");
    EXPECT_NE(*code, previous);
    previous = *code;
  }
}

TEST(AttendCompileTest, EveryHeadSizeAndType_Compiles) {
  for (int head_size : {64, 256}) {
    for (bool bf16 : {false, true}) {
      auto code = CompileAttend(Variant(head_size, bf16), "sm_90a", "");
      EXPECT_TRUE(code.ok()) << code.status();
    }
  }
}

TEST(AttendCompileTest, Cache_SecondTime_ComesFromTheFile) {
  const std::string folder = testing::TempDir() + "/attend_cache";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directory(folder);
  auto first = CompileAttend(Variant(64, false), "sm_90a", folder);
  ASSERT_TRUE(first.ok()) << first.status();
  auto files = std::filesystem::directory_iterator(folder);
  ASSERT_NE(files, std::filesystem::directory_iterator());
  std::ofstream(files->path(), std::ios::binary) << "cached";
  auto second = CompileAttend(Variant(64, false), "sm_90a", folder);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(std::string(second->begin(), second->end()), "cached");
  auto other = CompileAttend(Variant(64, true), "sm_90a", folder);
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_NE(*other, *second);
}

TEST(AttendCompileTest, UnknownArchitecture_SaysSo) {
  auto code = CompileAttend(Variant(64, false), "sm_1", "");
  EXPECT_EQ(code.status().code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace fq
