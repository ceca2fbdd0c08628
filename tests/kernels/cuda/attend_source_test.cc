#include "kernels/cuda/attend_source.h"

#include <set>
#include <string>

#include "gtest/gtest.h"

namespace fq {
namespace {

TEST(AttendSourceTest, Classes_BecomeNibblesOfGroups) {
  AttendVariant variant;
  variant.head_size = 64;
  variant.instances.push_back({{8, 4, 2, 2, 1, 1, 0, 0}, {4, 2, 0, 0, 0, 0, 0, 0}, {}, {}});
  const std::string source = AttendSource(variant);
  EXPECT_NE(source.find("BaseProfile<Classes<0x112248ull, 0x0ull>, Classes<0x24ull, 0x0ull>>"),
            std::string::npos)
      << source;
}

TEST(AttendSourceTest, HeadSize256_SecondWordHasTheUpperGroups) {
  AttendVariant variant;
  variant.head_size = 256;
  std::vector<uint8_t> k(32, 2);
  k[16] = 8;
  variant.instances.push_back({k, k, k, k});
  const std::string source = AttendSource(variant);
  EXPECT_NE(source.find("Classes<0x2222222222222222ull, 0x2222222222222228ull>"), std::string::npos)
      << source;
  EXPECT_NE(source.find("RefinedProfile<"), std::string::npos);
}

TEST(AttendSourceTest, NeededTables_AreThoseThatSomeInstanceReads) {
  AttendVariant variant;
  variant.head_size = 64;
  variant.instances.push_back({{8, 4, 0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0, 0, 0}, {}, {}});
  EXPECT_EQ(variant.NeededTables(), 1 << TableIndex(0, 4));
  const std::vector<uint8_t> twos(8, 2);
  variant.instances.push_back({twos, twos, {1, 0, 0, 0, 0, 0, 0, 0}, twos});
  EXPECT_EQ(variant.NeededTables(), 1 << TableIndex(0, 4) | 1 << TableIndex(0, 2) |
                                        1 << TableIndex(1, 1) | 1 << TableIndex(1, 2));
  // The plain tables of a kernel that needs fewer take less, and do not overlap.
  constexpr AttendTables kAll{1, true}, kFew{1, true, 0x23};
  EXPECT_LT(kFew.Bytes(64), kAll.Bytes(64));
  EXPECT_EQ(kFew.Plain(0, 0, 2), kFew.Plain(0, 0, 4) + 2048);
  EXPECT_EQ(kFew.Plain(0, 1, 1), kFew.Plain(0, 0, 2) + 2048);
  EXPECT_EQ(kFew.Ratios(), kFew.Plain(0, 1, 1) + 4096);
}

// Whatever the headers include must be there for the run-time compiler.
TEST(AttendSourceTest, Headers_EveryInclude_IsEmbedded) {
  std::set<std::string> names;
  for (const EmbeddedFile& file : AttendHeaders()) names.insert(file.name);
  for (const EmbeddedFile& file : AttendHeaders()) {
    const std::string text = file.text, include = "#include \"";
    for (size_t at = text.find(include); at != std::string::npos; at = text.find(include, at + 1)) {
      const size_t begin = at + include.size();
      const std::string name = text.substr(begin, text.find('"', begin) - begin);
      EXPECT_EQ(names.count(name), 1u) << file.name << " includes " << name;
    }
  }
}

}  // namespace
}  // namespace fq
