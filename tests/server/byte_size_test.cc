#include "server/byte_size.h"

#include <gtest/gtest.h>

namespace fq {
namespace {

TEST(ByteSize, NumbersAndUnits_GiveBytes) {
  EXPECT_EQ(*ParseByteSize("0"), 0u);
  EXPECT_EQ(*ParseByteSize("4096"), 4096u);
  EXPECT_EQ(*ParseByteSize("4GiB"), uint64_t{4} << 30);
  EXPECT_EQ(*ParseByteSize("1.5 GB"), 1'500'000'000u);
  EXPECT_EQ(*ParseByteSize(" 16 mib "), uint64_t{16} << 20);
  EXPECT_EQ(*ParseByteSize("2k"), 2000u);
  EXPECT_EQ(*ParseByteSize("3TiB"), uint64_t{3} << 40);
}

TEST(ByteSize, AnythingElse_IsRefusedWithItsText) {
  for (const char* text : {"", "GiB", "-1", "+1", "1e400", "1e3", "nan", "inf", "1..2", "4 GiBs",
                           "99999999999999999999TiB", "0x10", "1 2"}) {
    const auto bytes = ParseByteSize(text);
    ASSERT_FALSE(bytes.ok()) << text;
    EXPECT_NE(bytes.status().message().find(text), absl::string_view::npos) << bytes.status();
  }
}

}  // namespace
}  // namespace fq
