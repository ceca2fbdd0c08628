#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/primitives.h"
#include "tests/testing/hostile_rows.h"
#include "tests/testing/page_buffer.h"

namespace fq {
namespace {

constexpr int kD = 96;
using Matrix = std::vector<float>;

Matrix RandomMatrix(uint64_t seed, int values) {
  Random random(seed);
  Matrix matrix(values);
  for (float& value : matrix) value = static_cast<float>(random.Gaussian());
  return matrix;
}

// Aligned as the primitives expect.
struct Page {
  alignas(64) float x[kD * kPageTokens];
};

Page PageOf(const Matrix& matrix) {
  Page page;
  std::copy(matrix.begin(), matrix.end(), page.x);
  return page;
}

TEST(ScalarPrimitives, Transform_ChainInRisingOrder) {
  const Matrix a = RandomMatrix(1, kD * kD);
  const Page x = PageOf(RandomMatrix(2, kD * kPageTokens));
  Page u = PageOf(Matrix(kD * kPageTokens, 5.0f));
  ScalarPrimitives().transform(a.data(), kD, 0b10, x.x, u.x);
  EXPECT_EQ(u.x[0], 5.0f) << "group 0 is not in the mask";
  float sum = 0;
  for (int k = 0; k < kD; ++k) sum = std::fmaf(a[9 * kD + k], x.x[k * kPageTokens + 7], sum);
  EXPECT_EQ(u.x[9 * kPageTokens + 7], sum);
}

TEST(ScalarPrimitives, LoadRowsOutsideRange_Zero) {
  PageBuffer buffer(DType::kBF16, kD, {});
  for (int t = 0; t < kPageTokens; ++t) buffer.Set(t, 3, 2.0f);
  for (const Primitives* primitives : {&ScalarPrimitives(), &SimdPrimitives()}) {
    Page x;
    primitives->load_rows(buffer.source(), {DType::kBF16, kD, 5, 7}, x.x);
    for (int t = 0; t < kPageTokens; ++t) {
      EXPECT_EQ(x.x[3 * kPageTokens + t], t == 5 || t == 6 ? 2.0f : 0.0f);
    }
  }
}

// Stored bits are the same for every value: infinities, denormals, ties; NaN stays NaN.
TEST(ScalarPrimitives, StoreRowsOfHostileValues_SameBitsAsSimd) {
  Random random(8);
  for (DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    for (bool channel_major : {false, true}) {
      const Page x = PageOf(HostileRows(kD * kPageTokens, &random));
      PageBuffer scalar(dtype, kD, {channel_major}), simd(dtype, kD, {channel_major});
      ScalarPrimitives().store_rows(x.x, {dtype, kD, 1, 63}, scalar.target());
      SimdPrimitives().store_rows(x.x, {dtype, kD, 1, 63}, simd.target());
      for (int i = 0; i < kD * kPageTokens; ++i) {
        const float expected = scalar.Get(i / kD, i % kD), found = simd.Get(i / kD, i % kD);
        ASSERT_TRUE(expected == found || (std::isnan(expected) && std::isnan(found)))
            << static_cast<int>(dtype) << ' ' << i / kD << ' ' << expected << ' ' << found;
      }
    }
  }
}

TEST(ScalarPrimitives, InverseRows_SkippedGroupsDoNotCount) {
  const Matrix a = RandomMatrix(1, kD * kD), mu = RandomMatrix(3, kD);
  const Page v = PageOf(RandomMatrix(2, kD * kPageTokens));
  for (const Primitives* primitives : {&ScalarPrimitives(), &SimdPrimitives()}) {
    PageBuffer rows(DType::kF32, kD, {});
    primitives->inverse_rows(a.data(), mu.data(), 0b101, v.x, {DType::kF32, kD, 0, 64},
                             rows.target());
    double sum = mu[40];
    for (int c : {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23}) {
      sum += static_cast<double>(a[40 * kD + c]) * v.x[c * kPageTokens + 11];
    }
    EXPECT_NEAR(rows.Get(11, 40), sum, 1e-5);
  }
}

// Entries and points on a coarse grid: many entries are equal and many points lie between two.
TEST(ScalarPrimitives, FindNearestWithTies_LowestIndexAsSimd) {
  static SearchTable table;
  Random random(12);
  for (int values : {2, 4, 8}) {
    for (int i = 0; i < values * kTableEntries; ++i) {
      table.value[i / kTableEntries][i % kTableEntries] = static_cast<float>(random.Below(4));
    }
    const int count = 512 / values;
    alignas(64) float in[512];
    for (float& x : in) x = 0.5f * static_cast<float>(random.Below(8));
    uint8_t scalar[256], simd[256];
    ScalarPrimitives().prepare_search(values, &table);
    ScalarPrimitives().find_nearest(table, values, count, in, scalar);
    SimdPrimitives().prepare_search(values, &table);
    SimdPrimitives().find_nearest(table, values, count, in, simd);
    for (int b = 0; b < count; ++b) ASSERT_EQ(scalar[b], simd[b]) << values << ' ' << b;
  }
}

TEST(ScalarPrimitives, ScoreAndAccumulate_MatchDouble) {
  const Matrix q = RandomMatrix(4, kD);
  const Page v = PageOf(RandomMatrix(2, kD * kPageTokens));
  for (const Primitives* primitives : {&ScalarPrimitives(), &SimdPrimitives()}) {
    alignas(64) float scores[kPageTokens];
    std::vector<float> out(kD, 1.0f);
    primitives->score(q.data(), kD, v.x, scores);
    primitives->accumulate(scores, kD, v.x, 0.5f, out.data());
    double score = 0, sum = 0.5;
    for (int c = 0; c < kD; ++c) score += static_cast<double>(q[c]) * v.x[c * kPageTokens + 33];
    for (int t = 0; t < kPageTokens; ++t) {
      sum += static_cast<double>(scores[t]) * v.x[50 * kPageTokens + t];
    }
    EXPECT_NEAR(scores[33], score, 1e-4);
    EXPECT_NEAR(out[50], sum, 1e-3);
  }
}

}  // namespace
}  // namespace fq
