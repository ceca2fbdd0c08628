#include "tests/testing/golden_pages.h"

#include <fstream>
#include <iterator>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"

namespace fq {
namespace {

std::vector<std::byte> ReadGolden(const std::string& name) {
  std::ifstream file(FQ_SOURCE_DIR "/tests/golden/" + name, std::ios::binary);
  std::vector<std::byte> bytes;
  for (std::istreambuf_iterator<char> it(file), end; it != end; ++it) {
    bytes.push_back(static_cast<std::byte>(*it));
  }
  return bytes;
}

void ExpectGolden(const Backend& backend) {
  const std::vector<GoldenFile> files = MakeGoldenFiles(backend);
  ASSERT_GE(files.size(), 50u);
  for (const GoldenFile& file : files) {
    EXPECT_TRUE(ReadGolden(file.name) == file.bytes) << backend.name() << ": " << file.name;
  }
}

TEST(GoldenPages, ScalarBackend_SameBytes) { ExpectGolden(*ScalarBackend()); }

TEST(GoldenPages, CpuBackend_SameBytes) { ExpectGolden(*CpuBackend()); }

}  // namespace
}  // namespace fq
