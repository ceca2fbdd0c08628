// What every backend promises, as one suite over page kinds and head sizes. A backend adds one file
// that instantiates BackendSuite with a function returning it. Expected values come from
// tests/testing/reference_codec.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/page_bytes.h"
#include "kernels/page_error.h"
#include "tests/testing/codec_set_builder.h"
#include "tests/testing/page_buffer.h"
#include "tests/testing/random.h"
#include "tests/testing/reference_codec.h"
#include "tests/testing/row_tolerance.h"

namespace fq::conformance {

// How a page is coded: its kind, and whether a refinement goes with it.
enum class Coding { kExact, kCompact, kNearLossless, kUniversal };

inline PageKind KindOf(Coding coding) {
  if (coding == Coding::kExact) return PageKind::kExact;
  return coding == Coding::kUniversal ? PageKind::kUniversal : PageKind::kBase;
}

inline std::string NameOf(Coding coding) {
  static constexpr const char* kNames[] = {"Exact", "Compact", "NearLossless", "Universal"};
  return kNames[static_cast<int>(coding)];
}

// A page encoded by a backend.
struct EncodedPage {
  std::vector<std::byte> primary, refinement;
  int tokens = kBlockTokens;
  bool sink = false;

  bool operator==(const EncodedPage& other) const {
    return primary == other.primary && refinement == other.refinement;
  }
};

// Both sides of a page in memory.
struct PagePair {
  PageBuffer k, v;
  PagePair(DType dtype, int head_size, const BufferLayout& layout)
      : k(dtype, head_size, layout), v(dtype, head_size, layout) {}
  PageBuffer& side(int i) { return i == 0 ? k : v; }
};

using BackendParam = std::tuple<const Backend* (*)(), Coding, int>;

class BackendSuite : public testing::TestWithParam<BackendParam> {
 protected:
  static constexpr int kTokenCounts[] = {1, 15, 16, 17, 63, 64};
  static constexpr DType kDTypes[] = {DType::kF16, DType::kBF16, DType::kF32};

  void SetUp() override {
    auto set = CodecSet::Parse(BuildCodecSet(2, 2, head_size(), 5));
    ASSERT_TRUE(set.ok()) << set.status();
    set_ = *set;
  }

  const Backend& backend() const { return *std::get<0>(GetParam())(); }
  Coding coding() const { return std::get<1>(GetParam()); }
  int head_size() const { return std::get<2>(GetParam()); }
  Backend::Context context(DType dtype) const { return {set_.get(), head_size(), dtype}; }

  // The (layer, head) of test `index`: all profiles get their turn.
  static int LayerOf(int index) { return index / 2 % 2; }
  static int HeadOf(int index) { return index % 2; }

  PagePair MakePage(DType dtype, int index, const BufferLayout& layout = {}) const {
    PagePair page(dtype, head_size(), layout);
    std::vector<float> row(head_size());
    for (int i = 0; i < 2 * kBlockTokens; ++i) {
      const bool is_key = i < kBlockTokens;
      const HeadCodec& codec =
          is_key ? set_->k(LayerOf(index), HeadOf(index)) : set_->v(LayerOf(index), HeadOf(index));
      MakeRow(codec, head_size(), 977 * index + i, row.data());
      for (int c = 0; c < head_size(); ++c) page.side(!is_key).Set(i % kBlockTokens, c, row[c]);
    }
    return page;
  }

  EncodedPage Encode(DType dtype, PagePair& page, int index, int tokens, bool sink) const {
    const CodecProfile& profile = set_->profile(LayerOf(index), HeadOf(index));
    EncodedPage encoded;
    encoded.tokens = tokens;
    encoded.sink = sink;
    encoded.primary.assign(PageBytes({KindOf(coding()), dtype, head_size(), sink}, &profile),
                           PageBuffer::kGuard);
    EncodeTask task;
    task.kind = KindOf(coding());
    task.source = {page.k.source(), page.v.source()};
    task.layer = LayerOf(index);
    task.head = HeadOf(index);
    task.tokens = tokens;
    task.sink = sink;
    task.primary = encoded.primary.data();
    if (coding() == Coding::kNearLossless) {
      encoded.refinement.assign(
          PageBytes({PageKind::kRefinement, dtype, head_size(), sink}, &profile),
          PageBuffer::kGuard);
      task.refinement = encoded.refinement.data();
    }
    EXPECT_TRUE(backend().Encode(context(dtype), {task}).ok());
    return encoded;
  }

  void Decode(DType dtype, const EncodedPage& encoded, int index, PagePair* page) const {
    DecodeTask task;
    task.kind = KindOf(coding());
    task.primary = encoded.primary.data();
    task.refinement = encoded.refinement.empty() ? nullptr : encoded.refinement.data();
    task.target = {page->k.target(), page->v.target()};
    task.layer = LayerOf(index);
    task.head = HeadOf(index);
    task.tokens = encoded.tokens;
    task.sink = encoded.sink;
    EXPECT_TRUE(backend().Decode(context(dtype), {task}).ok());
  }

  PageError Measure(DType dtype, const EncodedPage& encoded, int index, PagePair* page) const {
    ErrorTask task;
    task.source = {page->k.source(), page->v.source()};
    task.layer = LayerOf(index);
    task.head = HeadOf(index);
    task.tokens = encoded.tokens;
    task.sink = encoded.sink;
    task.primary = encoded.primary.data();
    task.refinement = encoded.refinement.empty() ? nullptr : encoded.refinement.data();
    return MeasureError(context(dtype), task);
  }

  ReferencePage Reference(DType dtype, const EncodedPage& encoded, int index) const {
    ReferencePage page;
    page.kind = KindOf(coding());
    page.head_size = head_size();
    page.dtype = dtype;
    page.sink = encoded.sink;
    page.primary = encoded.primary.data();
    page.refinement = encoded.refinement.empty() ? nullptr : encoded.refinement.data();
    page.codec_set = set_.get();
    page.layer = LayerOf(index);
    page.head = HeadOf(index);
    return page;
  }

  double Tolerance(DType dtype, double value) const {
    if (coding() == Coding::kExact) return 0;
    const bool coded = coding() == Coding::kCompact || coding() == Coding::kNearLossless;
    return RowTolerance(dtype, value, 0.5, coded && std::strcmp(backend().name(), "cuda") == 0);
  }

  void ExpectMatches(DType dtype, const std::vector<double>& rows, int tokens,
                     PagePair* page) const {
    for (int i = 0; i < 2 * kBlockTokens; ++i) {
      if (i % kBlockTokens >= tokens) continue;
      for (int c = 0; c < head_size(); ++c) {
        const double expected = rows[i * head_size() + c];
        const double found = page->side(i / kBlockTokens).Get(i % kBlockTokens, c);
        ASSERT_NEAR(found, expected, Tolerance(dtype, expected))
            << "side " << i / kBlockTokens << " token " << i % kBlockTokens << " channel " << c;
      }
    }
  }

  std::shared_ptr<const CodecSet> set_;
};

inline std::vector<BufferLayout> AllLayouts() {
  std::vector<BufferLayout> layouts;
  for (bool channel_major : {false, true}) {
    for (int chunk : {16, 32, 64, 128}) {
      for (int first : {0, 5, 15, 64}) {
        if (first < chunk) layouts.push_back({channel_major, chunk, first, first});
      }
    }
  }
  return layouts;
}

TEST_P(BackendSuite, Decode_EveryTypeTokenCountAndSink_MatchesReference) {
  int index = 0;
  for (DType dtype : kDTypes) {
    for (int tokens : kTokenCounts) {
      for (bool sink : {false, true}) {
        PagePair source = MakePage(dtype, ++index);
        const EncodedPage encoded = Encode(dtype, source, index, tokens, sink);
        PagePair target(dtype, head_size(), {});
        Decode(dtype, encoded, index, &target);
        ExpectMatches(dtype, ReferenceRows(Reference(dtype, encoded, index)), tokens, &target);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(BackendSuite, Encode_Rows_CloseToWhatTheyWere) {
  static constexpr double kLimit[] = {0, 0.45, 0.25, 0.013};  // squared error over power
  for (bool sink : {false, true}) {
    PagePair source = MakePage(DType::kF32, 1);
    const EncodedPage encoded = Encode(DType::kF32, source, 1, 64, sink);
    const std::vector<double> rows = ReferenceRows(Reference(DType::kF32, encoded, 1));
    double error = 0, power = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      const int row = static_cast<int>(i) / head_size(), c = static_cast<int>(i) % head_size();
      const double was = source.side(row / kBlockTokens).Get(row % kBlockTokens, c);
      error += (rows[i] - was) * (rows[i] - was);
      power += was * was;
    }
    EXPECT_LE(error / power, kLimit[static_cast<int>(coding())]);
  }
}

// The relative weighted error of what this backend encoded, as the double reference finds it.
TEST_P(BackendSuite, MeasureError_EveryTypeTokenCountAndSink_MatchesReference) {
  if (KindOf(coding()) != PageKind::kBase) return;  // only codec sets have an expectation
  int index = 0;
  for (DType dtype : kDTypes) {
    for (int tokens : kTokenCounts) {
      for (bool sink : {false, true}) {
        PagePair source = MakePage(dtype, ++index, {index % 2 == 0, 32, 5, 3});
        const EncodedPage encoded = Encode(dtype, source, index, tokens, sink);
        std::vector<double> rows;
        for (int i = 0; i < 2 * kBlockTokens * head_size(); ++i) {
          const int row = i / head_size();
          rows.push_back(source.side(row / kBlockTokens).Get(row % kBlockTokens, i % head_size()));
        }
        const PageError expected = ReferenceError(Reference(dtype, encoded, index), rows, tokens);
        const PageError found = Measure(dtype, encoded, index, &source);
        for (int side : {0, 1}) {
          // u is an FP32 sum of up to 256 products, good to about 1e-6, and the error of a
          // near-lossless page is a hundredth of it.
          EXPECT_NEAR(found.error[side], expected.error[side], 1e-4 * expected.error[side]);
          EXPECT_NEAR(found.energy[side], expected.energy[side], 1e-5 * expected.energy[side]);
          EXPECT_EQ(expected.energy[side] == 0, sink && tokens <= kSinkTokens);
        }
      }
    }
  }
}

TEST_P(BackendSuite, Encode_AnyMemoryLayout_SameBytes) {
  for (DType dtype : kDTypes) {
    PagePair dense = MakePage(dtype, 3);
    for (int tokens : {17, 64}) {
      const EncodedPage expected = Encode(dtype, dense, 3, tokens, true);
      for (const BufferLayout& layout : AllLayouts()) {
        PagePair page = MakePage(dtype, 3, layout);
        EXPECT_TRUE(Encode(dtype, page, 3, tokens, true) == expected)
            << layout.channel_major << ' ' << layout.tokens_per_chunk << ' ' << layout.first_token;
      }
    }
  }
}

TEST_P(BackendSuite, Decode_AnyMemoryLayout_SameValuesAndNothingElseWritten) {
  for (DType dtype : kDTypes) {
    PagePair source = MakePage(dtype, 2);
    for (int tokens : {17, 64}) {
      const EncodedPage encoded = Encode(dtype, source, 2, tokens, true);
      PagePair expected(dtype, head_size(), {});
      Decode(dtype, encoded, 2, &expected);
      for (const BufferLayout& layout : AllLayouts()) {
        PagePair page(dtype, head_size(), layout);
        Decode(dtype, encoded, 2, &page);
        for (int side : {0, 1}) {
          for (int i = 0; i < tokens * head_size(); ++i) {
            const int t = i / head_size(), c = i % head_size();
            ASSERT_EQ(page.side(side).Get(t, c), expected.side(side).Get(t, c));
          }
          const size_t written = size_t(tokens) * head_size() * ElementBytes(dtype);
          ASSERT_GE(page.side(side).GuardBytes(), page.side(side).Bytes() - written);
        }
      }
    }
  }
}

TEST_P(BackendSuite, Encode_RowsBeyondTheTokens_DoNotMatter) {
  PagePair first = MakePage(DType::kF32, 1), second = MakePage(DType::kF32, 1);
  for (int t = 17; t < kBlockTokens; ++t) {
    for (int side : {0, 1}) second.side(side).Set(t, 3, 1e30f);
  }
  EXPECT_TRUE(Encode(DType::kF32, first, 1, 17, false) ==
              Encode(DType::kF32, second, 1, 17, false));
}

// FORMAT.md section 1: NaN counts as the mean of its channel (0 where there is none), infinity as
// 65504.
TEST_P(BackendSuite, Encode_NaNAndInfinity_SameBytesAsMeanAndLimit) {
  if (coding() == Coding::kExact) return;  // keeps every bit, see exact_rows_test
  PagePair broken = MakePage(DType::kF32, 1), mended = MakePage(DType::kF32, 1);
  const bool has_mean = coding() != Coding::kUniversal;
  for (int side : {0, 1}) {
    const HeadCodec& codec =
        side == 0 ? set_->k(LayerOf(1), HeadOf(1)) : set_->v(LayerOf(1), HeadOf(1));
    for (int t = 0; t < kBlockTokens; t += 3) {
      const int c = (7 * t + 5) % head_size(), other = (c + 9) % head_size();
      broken.side(side).Set(t, c, std::numeric_limits<float>::quiet_NaN());
      mended.side(side).Set(t, c, has_mean ? codec.mu[c] : 0.0f);
      broken.side(side).Set(t, other, t % 2 == 0 ? 1e38f : -std::numeric_limits<float>::infinity());
      mended.side(side).Set(t, other, t % 2 == 0 ? 65504.0f : -65504.0f);
    }
  }
  EXPECT_TRUE(Encode(DType::kF32, broken, 1, 64, false) ==
              Encode(DType::kF32, mended, 1, 64, false));
}

TEST_P(BackendSuite, Attend_PagesOfOneHead_MatchesDoubleReference) {
  constexpr int kIndex = 1, kHeads = 5;
  const DType dtype = DType::kF16;
  std::vector<EncodedPage> encoded;
  std::vector<double> k, v;
  std::vector<AttendTask::Page> pages;
  for (int tokens : {64, 64, 16, 7}) {
    PagePair source = MakePage(dtype, kIndex + 4 * static_cast<int>(encoded.size()));
    encoded.push_back(Encode(dtype, source, kIndex, tokens, encoded.empty()));
    const std::vector<double> rows = ReferenceRows(Reference(dtype, encoded.back(), kIndex));
    const size_t side = rows.size() / 2, used = size_t(tokens) * head_size();
    k.insert(k.end(), rows.begin(), rows.begin() + used);
    v.insert(v.end(), rows.begin() + side, rows.begin() + side + used);
  }
  for (const EncodedPage& page : encoded) {
    pages.push_back({KindOf(coding()), page.primary.data(),
                     page.refinement.empty() ? nullptr : page.refinement.data(), page.tokens,
                     page.sink});
  }
  std::vector<float> q(kHeads * head_size()), out(q.size()), lse(kHeads);
  Random random(9);
  for (float& value : q) value = static_cast<float>(random.Gaussian());
  AttendTask task;
  task.layer = LayerOf(kIndex);
  task.head = HeadOf(kIndex);
  task.q_heads = kHeads;
  task.scale = 0.3f;
  task.q = q.data();
  task.out = out.data();
  task.lse = lse.data();
  task.pages = pages;
  ASSERT_TRUE(backend().Attend(context(dtype), {task}).ok());
  for (int head = 0; head < kHeads; ++head) {
    const AttendedRow expected =
        AttendReference(k, v, head_size(), &q[head * head_size()], task.scale);
    // Scores reach about 20, so FP32 leaves 1e-5 of relative error in a weight; outputs are of
    // order 1.
    EXPECT_NEAR(lse[head], expected.lse, 2e-5 * (1 + std::fabs(expected.lse)));
    for (int c = 0; c < head_size(); ++c) {
      EXPECT_NEAR(out[head * head_size() + c], expected.out[c], 1e-4);
    }
  }
}

TEST_P(BackendSuite, Attend_NoPages_ZeroAndMinusInfinity) {
  std::vector<float> q(head_size(), 1.0f), out(head_size(), 7.0f);
  float lse = 0;
  AttendTask task;
  task.q = q.data();
  task.out = out.data();
  task.lse = &lse;
  ASSERT_TRUE(backend().Attend(context(DType::kF16), {task}).ok());
  EXPECT_EQ(lse, -std::numeric_limits<float>::infinity());
  EXPECT_EQ(out, std::vector<float>(head_size(), 0.0f));
}

inline std::string BackendCaseName(const testing::TestParamInfo<BackendParam>& info) {
  return NameOf(std::get<1>(info.param)) + std::to_string(std::get<2>(info.param));
}

// One line per backend: FQ_INSTANTIATE_BACKEND_SUITE(Scalar, ScalarBackend);
#define FQ_INSTANTIATE_BACKEND_SUITE(prefix, backend)                                           \
  INSTANTIATE_TEST_SUITE_P(                                                                     \
      prefix, BackendSuite,                                                                     \
      testing::Combine(testing::Values(backend),                                                \
                       testing::Values(Coding::kExact, Coding::kCompact, Coding::kNearLossless, \
                                       Coding::kUniversal),                                     \
                       testing::Values(64, 96, 128, 256)),                                      \
      BackendCaseName)

}  // namespace fq::conformance
