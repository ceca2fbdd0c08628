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
