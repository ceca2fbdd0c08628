// Against the double reference in tests/conformance/backend_suite.h; here what that cannot see.
#include "kernels/page_error.h"

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/page_bytes.h"
#include "tests/testing/codec_set_builder.h"

namespace fq {
namespace {

class MeasureErrorTest : public testing::Test {
 protected:
  static constexpr int kHeadSize = 64;

  MeasureErrorTest() : set_(*CodecSet::Parse(BuildCodecSet(1, 1, kHeadSize, 3))), rows_(2) {
    for (int i = 0; i < 2 * kBlockTokens; ++i) {
      std::vector<float>& side = rows_[i / kBlockTokens];
      side.resize(kBlockTokens * kHeadSize);
      const HeadCodec& codec = i < kBlockTokens ? set_->k(0, 0) : set_->v(0, 0);
      MakeRow(codec, kHeadSize, i, &side[i % kBlockTokens * kHeadSize]);
    }
  }

  SourcePage Source() const {
    SourcePage page;
    page.k.chunks[0] = reinterpret_cast<const std::byte*>(rows_[0].data());
    page.v.chunks[0] = reinterpret_cast<const std::byte*>(rows_[1].data());
    page.k.token_stride = page.v.token_stride = kHeadSize;
    return page;
  }

  void Encode() {
    EncodeTask task;
    task.source = Source();
    primary_.resize(
        PageBytes({PageKind::kBase, DType::kF32, kHeadSize, false}, &set_->profile(0, 0)));
    refinement_.resize(
        PageBytes({PageKind::kRefinement, DType::kF32, kHeadSize, false}, &set_->profile(0, 0)));
    task.primary = primary_.data();
    task.refinement = refinement_.data();
    ASSERT_TRUE(ScalarBackend()->Encode(context(), {task}).ok());
  }

  Backend::Context context() const { return {set_.get(), kHeadSize, DType::kF32}; }

  PageError Measure(bool refined) const {
    ErrorTask task;
    task.source = Source();
    task.primary = primary_.data();
    task.refinement = refined ? refinement_.data() : nullptr;
    return MeasureError(context(), task);
  }

  std::shared_ptr<const CodecSet> set_;
  std::vector<std::vector<float>> rows_;  // K, V: [64][d]
  std::vector<std::byte> primary_, refinement_;
};

TEST_F(MeasureErrorTest, Refined_LessErrorSameEnergy) {
  Encode();
  const PageError base = Measure(false), refined = Measure(true);
  for (int side : {0, 1}) {
    EXPECT_GT(refined.error[side], 0);
    EXPECT_LT(refined.error[side], 0.5 * base.error[side]);
    EXPECT_EQ(refined.energy[side], base.energy[side]);
    EXPECT_LT(base.error[side], base.energy[side]);
  }
}

TEST_F(MeasureErrorTest, RowsOfAnotherDistribution_MoreErrorOfTheirEnergy) {
  Encode();
  const PageError before = Measure(false);
  for (auto& side : rows_) {
    for (float& value : side) value *= 10;
  }
  Encode();
  const PageError after = Measure(false);
  for (int side : {0, 1}) {
    EXPECT_GT(after.error[side] / after.energy[side], 2 * before.error[side] / before.energy[side]);
  }
}

TEST_F(MeasureErrorTest, NotANumberAndInfinity_FiniteSums) {
  rows_[0][5] = std::numeric_limits<float>::quiet_NaN();
  rows_[1][7] = std::numeric_limits<float>::infinity();
  Encode();
  const PageError sums = Measure(true);
  for (int side : {0, 1}) {
    EXPECT_TRUE(std::isfinite(sums.error[side]));
    EXPECT_TRUE(std::isfinite(sums.energy[side]));
  }
}

}  // namespace
}  // namespace fq
