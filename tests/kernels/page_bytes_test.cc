#include "kernels/page_bytes.h"

#include "gtest/gtest.h"

namespace fq {
namespace {

TEST(PageBytes, EveryKind_AsFormatSays) {
  CodecProfile profile;
  profile.k = {8, 4, 2, 1, 0, 0, 0, 0};
  profile.v = {4, 0, 0, 0, 0, 0, 0, 0};
  profile.k_refinement = {2, 2, 2, 2, 2, 2, 2, 2};
  profile.v_refinement = {1, 0, 0, 0, 0, 0, 0, 0};
  const auto bytes = [&](PageKind kind, DType dtype, bool sink) {
    return PageBytes({kind, dtype, 64, sink}, &profile);
  };
  EXPECT_EQ(bytes(PageKind::kExact, DType::kBF16, true), 64u * 64 * 2 * 2);
  EXPECT_EQ(bytes(PageKind::kExact, DType::kF32, false), 64u * 64 * 4 * 2);
  EXPECT_EQ(bytes(PageKind::kBase, DType::kBF16, false), 64u * 19);
  EXPECT_EQ(bytes(PageKind::kBase, DType::kBF16, true), 64u * 19 + 32 * 64 + 128);
  EXPECT_EQ(bytes(PageKind::kRefinement, DType::kBF16, true), 64u * 17);
  EXPECT_EQ(bytes(PageKind::kUniversal, DType::kBF16, false), 64u * 64 + 256);
  EXPECT_EQ(bytes(PageKind::kUniversal, DType::kBF16, true), 64u * 64 + 256 + 32 * 64 + 128);
}

}  // namespace
}  // namespace fq
