#include "client/cli/files.h"

#include <gtest/gtest.h>

#include <filesystem>

namespace fq::cli {
namespace {

TEST(Files, WrittenFile_ReadsBack) {
  const std::string path = testing::TempDir() + "/fq_files_test";
  const std::vector<std::byte> bytes = {std::byte{0}, std::byte{255}, std::byte{10}};
  ASSERT_TRUE(WriteFile("file", path, bytes).ok());
  EXPECT_EQ(*ReadFile("file", path), std::string("\0\xff\n", 3));
  ASSERT_TRUE(WriteFile("file", path, {}).ok());
  EXPECT_EQ(*ReadFile("file", path), "");
  std::filesystem::remove(path);
}

TEST(Files, NoSuchFile_NamesIt) {
  const auto text = ReadFile("tokens", "/nowhere/file");
  EXPECT_TRUE(absl::IsInvalidArgument(text.status()));
  EXPECT_EQ(text.status().message(),
            "--tokens = /nowhere/file: cannot be read: No such file or directory");
  const absl::Status written = WriteFile("file", "/nowhere/file", {});
  EXPECT_TRUE(absl::IsDataLoss(written));
  EXPECT_EQ(written.message(),
            "--file = /nowhere/file: cannot be written: No such file or directory");
}

TEST(Files, Tokens_InAnyCommonShape) {
  EXPECT_EQ(*ParseTokens("1 2\n3"), (std::vector<uint32_t>{1, 2, 3}));
  EXPECT_EQ(*ParseTokens("[1, 2, 4294967295]\n"), (std::vector<uint32_t>{1, 2, 4294967295}));
  EXPECT_TRUE(ParseTokens("")->empty());
}

TEST(Files, TokenThatIsNone_IsNamed) {
  EXPECT_EQ(ParseTokens("1 x").status().message(), "token 1 is 'x', no id from 0 to 4294967295");
  EXPECT_FALSE(ParseTokens("4294967296").ok());
  EXPECT_FALSE(ParseTokens("-1").ok());
}

}  // namespace
}  // namespace fq::cli
