#include "kernels/codec/word_sum.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace fq {
namespace {

uint64_t SumOf(const std::vector<uint64_t>& words) {
  uint64_t sum = 0;
  for (size_t i = 0; i < words.size(); ++i) sum += WordSumTerm(i, words[i]);
  return sum;
}

// What the other side of a link computes (tests/client/python/test_peer_link.py has the same).
TEST(WordSum, IsWhatTheWireSays) {
  EXPECT_EQ(SumOf({}), 0u);
  EXPECT_EQ(SumOf({1}), 0x9E3779B97F4A7C15u);
  EXPECT_EQ(SumOf({0, 1}), 3 * 0x9E3779B97F4A7C15u);
  EXPECT_EQ(SumOf({0x0123456789ABCDEF, 0xFEDCBA9876543210, ~uint64_t{0}}), 0xF51CE2C4CFD0CE22u);
}

// A bit anywhere, an exchange of words, a word that moves.
TEST(WordSum, TellsWhatChanged) {
  const std::vector<uint64_t> words = {5, 0, 0, 0x8000000000000000, 77, 78};
  const uint64_t sum = SumOf(words);
  for (size_t i = 0; i < words.size(); ++i) {
    for (int bit = 0; bit < 64; ++bit) {
      std::vector<uint64_t> changed = words;
      changed[i] ^= uint64_t{1} << bit;
      EXPECT_NE(SumOf(changed), sum) << i << " " << bit;
    }
  }
  EXPECT_NE(SumOf({0, 5, 0, 0x8000000000000000, 77, 78}), sum);
  EXPECT_NE(SumOf({5, 0, 0, 0x8000000000000000, 78, 77}), sum);
  EXPECT_NE(SumOf({0, 5, 0, 0, 0x8000000000000000, 77, 78}), sum);
}

}  // namespace
}  // namespace fq
