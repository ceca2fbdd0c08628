#include "kernels/codec/checksum.h"

#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace fq {
namespace {

std::vector<std::byte> Words(std::vector<uint64_t> words) {
  const auto* bytes = reinterpret_cast<const std::byte*>(words.data());
  return std::vector<std::byte>(bytes, bytes + 8 * words.size());
}

// One word 0: v = k_0 = 9E3779B97F4A7C15, s = 7F4A7C15 * 9E3779B9 + 0 = 4EB26CFC0FC1162D,
// h = s ^ (8 * C2B2AE3D27D4EB4F) = 5827160331674C55, and so on by section 3.
TEST(Checksum, OneZeroWord_AsComputedByHand) {
  EXPECT_EQ(ChecksumWord(0, 0), 0x7F4A7C15ull * 0x9E3779B9ull);
  uint64_t h = (0x7F4A7C15ull * 0x9E3779B9ull) ^ (8 * 0xC2B2AE3D27D4EB4Full);
  h ^= h >> 37;
  h *= 0x165667919E3779F9ull;
  h ^= h >> 32;
  EXPECT_EQ(Checksum(Words({0}).data(), 8), h);
}

// From an implementation in Python, written from FORMAT.md.
TEST(Checksum, WordsZeroOneTwo_GoldenValue) {
  EXPECT_EQ(Checksum(Words({0, 1, 2}).data(), 24), 0xB925D9A285A7E50Full);
}

TEST(Checksum, LengthAndOrder_Matter) {
  EXPECT_NE(Checksum(Words({1, 2}).data(), 16), Checksum(Words({2, 1}).data(), 16));
  EXPECT_NE(Checksum(Words({0}).data(), 8), Checksum(Words({0, 0}).data(), 16));
  EXPECT_NE(Checksum(nullptr, 0), Checksum(Words({0}).data(), 8));
}

TEST(Checksum, UnalignedData_SameValue) {
  Random random(1);
  std::vector<std::byte> bytes(65);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.Next());
  const std::vector<std::byte> aligned(bytes.begin() + 1, bytes.end());
  EXPECT_EQ(Checksum(bytes.data() + 1, 64), Checksum(aligned.data(), 64));
}

}  // namespace
}  // namespace fq
