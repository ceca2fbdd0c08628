#include "kernels/cpu/exact_rows.h"

#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace fq {
namespace {

// Every bit pattern, signalling NaN included, comes back; rows beyond the tokens are zero bytes in
// the page.
TEST(ExactRows, RandomBits_ComeBackInEitherStrideOrder) {
  Random random(6);
  for (DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    const int bytes = ElementBytes(dtype);
    const ExactShape shape{dtype, 64, 17};
    std::vector<std::byte> source(64 * 64 * bytes), target(source.size());
    for (std::byte& byte : source) byte = static_cast<std::byte>(random.Next());
    std::vector<std::byte> page(ExactPageBytes(64, bytes), std::byte{0xFF});
    for (bool channel_major : {false, true}) {
      SourceRows from;
      from.chunks[0] = source.data();
      from.token_stride = channel_major ? 1 : 64;
      from.channel_stride = channel_major ? 64 : 1;
      TargetRows to;
      to.chunks[0] = target.data();
      to.token_stride = from.token_stride;
      to.channel_stride = from.channel_stride;
      EncodeExactRows(Side::kValue, shape, from, page.data());
      DecodeExactRows(Side::kValue, shape, page.data(), to);
      for (int i = 0; i < 17 * 64; ++i) {
        const size_t at = (i / 64 * from.token_stride + i % 64 * from.channel_stride) * bytes;
        ASSERT_EQ(std::memcmp(&source[at], &target[at], bytes), 0);
      }
      EXPECT_EQ(page[ExactRowOffset(Side::kValue, 17, 64, bytes)], std::byte{0});
      EXPECT_EQ(page.back(), std::byte{0});
      EXPECT_EQ(page[0], std::byte{0xFF}) << "K is not V's to write";
    }
  }
}

}  // namespace
}  // namespace fq
