#include "client/cli/session_flags.h"

#include <gtest/gtest.h>

namespace fq::cli {
namespace {

SessionFlags Described() {
  SessionFlags flags;
  flags.model = "m";
  flags.layers = 4;
  flags.kv_heads = 2;
  flags.head_size = 128;
  return flags;
}

TEST(SessionFlags, Descriptor_TakesEveryFlag) {
  SessionFlags flags = Described();
  flags.dtype = "f32";
  flags.codec_set_id_hex = std::string(64, 'a');
  flags.extra = {"k=v=w", "empty="};
  const auto d = flags.DescriptorOf();
  ASSERT_TRUE(d.ok()) << d.status();
  EXPECT_EQ(d->dtype, client::DType::kF32);
  EXPECT_EQ(d->codec_set_id, std::string(32, '\xaa'));
  EXPECT_EQ(d->extra.at("k"), "v=w");
  EXPECT_EQ(d->extra.at("empty"), "");
}

TEST(SessionFlags, Descriptor_NamesTheFlagThatIsWrong) {
  SessionFlags flags = Described();
  flags.kv_heads = 0;
  EXPECT_EQ(flags.DescriptorOf().status().message(),
            "--kv-heads is 0; with --model it must be set");
  flags = Described();
  flags.codec_set_id_hex = "abc";
  EXPECT_EQ(flags.DescriptorOf().status().message(), "--codec-set has 3 hex digits, must have 64");
  flags = Described();
  flags.extra = {"novalue"};
  EXPECT_FALSE(flags.DescriptorOf().ok());
}

TEST(PrefixFlags, Blocks_CountIdsFromTheFirst) {
  PrefixFlags flags;
  flags.blocks = 2;
  flags.first_token = 10;
  const auto tokens = flags.Tokens();
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  ASSERT_EQ(tokens->size(), 128u);
  EXPECT_EQ(tokens->front(), 10u);
  EXPECT_EQ(tokens->back(), 137u);
}

TEST(PrefixFlags, LessThanABlock_IsRefused) {
  EXPECT_TRUE(absl::IsInvalidArgument(PrefixFlags().Tokens().status()));
  PrefixFlags flags;
  flags.blocks = (1 << 20) + 1;
  EXPECT_TRUE(absl::IsInvalidArgument(flags.Tokens().status()));
  flags.blocks = 1 << 20;
  EXPECT_TRUE(flags.Tokens().ok());
}

}  // namespace
}  // namespace fq::cli
