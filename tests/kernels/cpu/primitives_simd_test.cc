#include "kernels/cpu/primitives.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "hwy/targets.h"
#include "kernels/backend.h"
#include "kernels/codec/float_convert.h"
#include "kernels/page_bytes.h"
#include "tests/testing/codec_set_builder.h"
#include "tests/testing/hostile_rows.h"
#include "tests/testing/random.h"
#include "tests/testing/reference_codec.h"

namespace fq {
namespace {

constexpr uint64_t kSeed = 20261124;

// One page of FP32 rows [2][64][d], and room for everything that it encodes to.
struct Page {
  Page(const CodecSet& set, std::vector<float> rows_in, bool sink_in, PageKind kind_in)
      : rows(std::move(rows_in)), sink(sink_in), kind(kind_in), d(set.head_size()) {
    const CodecProfile& profile = set.profile(0, 0);
    primary.resize(PageBytes({kind, DType::kF32, d, sink}, &profile));
    refinement.resize(PageBytes({PageKind::kRefinement, DType::kF32, d, sink}, &profile));
  }

  EncodeTask Task() {
    EncodeTask task;
    task.kind = kind;
    task.sink = sink;
    task.primary = primary.data();
    task.refinement = kind == PageKind::kBase ? refinement.data() : nullptr;
    task.source.k.chunks[0] = reinterpret_cast<const std::byte*>(rows.data());
    task.source.v.chunks[0] = reinterpret_cast<const std::byte*>(rows.data() + 64 * d);
    task.source.k.token_stride = task.source.v.token_stride = d;
    return task;
  }

  ReferencePage Reference(const CodecSet& set) const {
    ReferencePage page;
    page.kind = kind;
    page.head_size = d;
    page.sink = sink;
    page.primary = primary.data();
    page.refinement = kind == PageKind::kBase ? refinement.data() : nullptr;
    page.codec_set = &set;
    return page;
  }

  std::vector<float> rows;
  bool sink;
  PageKind kind;
  int d;
  std::vector<std::byte> primary, refinement;
};

std::shared_ptr<const CodecSet> SetOf(int head_size) {
  return CodecSet::Parse(BuildCodecSet(1, 1, head_size, 21)).value();
}

Backend::Context ContextOf(const CodecSet& set) { return {&set, set.head_size(), DType::kF32}; }

Page RandomPage(const CodecSet& set, Random* random) {
  const bool sink = random->Below(2) == 1;
  const PageKind kind = random->Below(3) == 0 ? PageKind::kUniversal : PageKind::kBase;
  return Page(set, HostileRows(128 * set.head_size(), random), sink, kind);
}

// SIMD targets that are compiled in and that this machine has.
std::vector<int64_t> Targets() {
  std::vector<int64_t> targets;
  const int64_t supported = hwy::SupportedTargets();
  for (int64_t bit = 1; bit > 0 && bit < int64_t{1} << 62; bit <<= 1) {
    if (supported & bit) targets.push_back(bit);
  }
  return targets;
}

class OneTarget {
 public:
  explicit OneTarget(int64_t target) { hwy::SetSupportedTargetsForTest(target); }
  ~OneTarget() { hwy::SetSupportedTargetsForTest(0); }
};

TEST(SimdPrimitives, EveryTarget_EncodesTheBytesOfScalarCode) {
  Random random(kSeed);
  for (int d : {64, 96, 128, 256}) {
    const auto set = SetOf(d);
    for (int i = 0; i < 12; ++i) {
      Page expected = RandomPage(*set, &random);
      ASSERT_TRUE(ScalarBackend()->Encode(ContextOf(*set), {expected.Task()}).ok());
      for (int64_t target : Targets()) {
        OneTarget only(target);
        Page page(*set, expected.rows, expected.sink, expected.kind);
        ASSERT_TRUE(CpuBackend()->Encode(ContextOf(*set), {page.Task()}).ok());
        EXPECT_TRUE(page.primary == expected.primary && page.refinement == expected.refinement)
            << CpuBackend()->name() << " d " << d << " page " << i << " seed " << kSeed;
      }
    }
  }
}

constexpr int kD = 96, kMatrix = kD * kPageTokens;

// Results of the primitives that decide the bytes of a page, for hostile input made from `seed`.
struct EncoderResults {
  alignas(64) float x[kMatrix], u[kMatrix], z[kPageTokens], v[kPageTokens], halves[kMatrix];
  alignas(64) float even[kPageTokens], odd[kPageTokens];
  SearchTable table;
  uint8_t nearest[64], class8[kGroupValues];

  EncoderResults(const Primitives& primitives, uint64_t seed) {
    Random random(seed);
    const std::vector<float> rows = HostileRows(kMatrix, &random);
    const std::vector<float> values = HostileRows(kD * kD, &random);
    std::fill_n(u, kMatrix, 0.0f);
    std::copy(rows.begin(), rows.end(), x);
    const RowRange range{DType::kF32, kD, 3, 61};
    primitives.centre(values.data(), range, x);
    primitives.transform(values.data(), kD, 0b101101111011, x, u);
    primitives.quantise_class8(u, class8);
    std::copy(values.begin() + 64, values.begin() + 128, v);
    primitives.scale_residual(u, v, values[0], z);
    primitives.refine(values[1], z, v);
    std::copy(values.begin(), values.begin() + 8 * kTableEntries, table.value[0]);
    primitives.prepare_search(8, &table);
    primitives.find_nearest(table, 8, 64, u, nearest);
    const auto* bits = reinterpret_cast<const uint16_t*>(values.data());
    primitives.widen_halves(bits, kMatrix, halves);
    alignas(64) uint32_t pairs[kPageTokens];
    std::memcpy(pairs, values.data(), sizeof(pairs));
    primitives.widen_pairs(pairs, even, odd);
  }
};

template <size_t kCount>
void ExpectSameBits(const float (&expected)[kCount], const float (&found)[kCount],
                    const char* what) {
  for (size_t i = 0; i < kCount; ++i) {
    if (std::isnan(expected[i]) && std::isnan(found[i])) continue;
    ASSERT_EQ(FloatBits(expected[i]), FloatBits(found[i]))
        << what << ' ' << i << ": " << expected[i] << " and " << found[i];
  }
}

TEST(SimdPrimitives, EveryTarget_ComputesTheBitsOfScalarCode) {
  for (uint64_t seed = kSeed; seed < kSeed + 40; ++seed) {
    const auto expected = std::make_unique<EncoderResults>(ScalarPrimitives(), seed);
    for (int64_t target : Targets()) {
      OneTarget only(target);
      SCOPED_TRACE(std::string(SimdPrimitives().name) + ", seed " + std::to_string(seed));
      const auto found = std::make_unique<EncoderResults>(SimdPrimitives(), seed);
      ExpectSameBits(expected->x, found->x, "centre");
      ExpectSameBits(expected->u, found->u, "transform");
      ExpectSameBits(expected->z, found->z, "scale_residual");
      ExpectSameBits(expected->v, found->v, "refine");
      ExpectSameBits(expected->table.start, found->table.start, "prepare_search");
      ExpectSameBits(expected->halves, found->halves, "widen_halves");
      ExpectSameBits(expected->even, found->even, "widen_pairs");
      ExpectSameBits(expected->odd, found->odd, "widen_pairs");
      EXPECT_EQ(std::memcmp(expected->class8, found->class8, sizeof(found->class8)), 0);
      EXPECT_EQ(std::memcmp(expected->nearest, found->nearest, sizeof(found->nearest)), 0);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(SimdPrimitives, ThisMachine_UsesTheBestTarget) {
  if ((hwy::SupportedTargets() & HWY_AVX2) == 0) GTEST_SKIP() << "no SIMD with FMA here";
  EXPECT_STRNE(CpuBackend()->name(), "scalar");
  EXPECT_STREQ(ScalarBackend()->name(), "scalar");
}

TEST(SimdPrimitives, PagesSplitOverThreads_SameBytes) {
  const auto set = SetOf(64);
  Random random(kSeed);
  std::vector<Page> together, apart;
  together.reserve(32);
  for (int i = 0; i < 32; ++i) together.push_back(RandomPage(*set, &random));
  apart = together;
  std::vector<EncodeTask> tasks;
  tasks.reserve(together.size());
  for (Page& page : together) tasks.push_back(page.Task());
  ASSERT_TRUE(CpuBackend()->Encode(ContextOf(*set), tasks).ok());
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < apart.size(); i += 4) {
        EXPECT_TRUE(CpuBackend()->Encode(ContextOf(*set), {apart[i].Task()}).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < together.size(); ++i) {
    EXPECT_TRUE(together[i].primary == apart[i].primary);
    EXPECT_TRUE(together[i].refinement == apart[i].refinement);
  }
}

// What FORMAT.md section 1 makes of an input element.
double Sane(float x, double mean) {
  if (std::isnan(x)) return mean;
  return std::min(65504.0, std::max(-65504.0, static_cast<double>(x)));
}

// Sink rows are exact to half a step of their scale, whatever is in them.
void ExpectSinkRows(const Page& page, const std::vector<double>& rows) {
  for (int side = 0; side < 2; ++side) {
    for (int t = 0; t < kSinkTokens; ++t) {
      const size_t row = (side * 64 + t) * page.d;
      double max = 0;
      for (int c = 0; c < page.d; ++c) max = std::max(max, std::fabs(Sane(page.rows[row + c], 0)));
      for (int c = 0; c < page.d; ++c) {
        ASSERT_NEAR(rows[row + c], Sane(page.rows[row + c], 0), max / 127 * 0.501);
      }
    }
  }
}

TEST(SimdPrimitives, TenThousandHostilePages_EncodeAndDecodeToFiniteRows) {
  constexpr int kPages = 10000;
  RecordProperty("seed", std::to_string(kSeed));
  std::printf("seed %llu\n", static_cast<unsigned long long>(kSeed));
  Random random(kSeed);
  const std::shared_ptr<const CodecSet> sets[] = {SetOf(64), SetOf(96), SetOf(128), SetOf(256)};
  for (int i = 0; i < kPages; ++i) {
    const CodecSet& set = *sets[i % 32 == 0 ? 3 : i % 8 == 0 ? 2 : i % 4 == 0 ? 1 : 0];
    Page page = RandomPage(set, &random);
    ASSERT_TRUE(CpuBackend()->Encode(ContextOf(set), {page.Task()}).ok());
    std::vector<float> decoded(page.rows.size());
    DecodeTask task;
    task.kind = page.kind;
    task.primary = page.primary.data();
    task.refinement = page.kind == PageKind::kBase ? page.refinement.data() : nullptr;
    task.sink = page.sink;
    task.target.k.chunks[0] = reinterpret_cast<std::byte*>(decoded.data());
    task.target.v.chunks[0] = reinterpret_cast<std::byte*>(decoded.data() + 64 * page.d);
    task.target.k.token_stride = task.target.v.token_stride = page.d;
    ASSERT_TRUE(CpuBackend()->Decode(ContextOf(set), {task}).ok());
    for (float value : decoded) ASSERT_TRUE(std::isfinite(value)) << "page " << i;
    if (page.sink) {
      ExpectSinkRows(page, std::vector<double>(decoded.begin(), decoded.end()));
    }
    if (HasFatalFailure()) return;
  }
}

// Any bytes are a page: all codes decode, and to what FORMAT.md says.
TEST(SimdPrimitives, RandomBytes_DecodeAsTheReference) {
  Random random(kSeed);
  for (int d : {64, 96, 128, 256}) {
    const auto set = SetOf(d);
    for (int i = 0; i < 50; ++i) {
      Page page(*set, std::vector<float>(128 * d), false, PageKind::kBase);
      for (std::byte& byte : page.primary) byte = static_cast<std::byte>(random.Next());
      for (std::byte& byte : page.refinement) byte = static_cast<std::byte>(random.Next());
      DecodeTask task;
      task.primary = page.primary.data();
      task.refinement = page.refinement.data();
      task.target.k.chunks[0] = reinterpret_cast<std::byte*>(page.rows.data());
      task.target.v.chunks[0] = reinterpret_cast<std::byte*>(page.rows.data() + 64 * d);
      task.target.k.token_stride = task.target.v.token_stride = d;
      ASSERT_TRUE(CpuBackend()->Decode(ContextOf(*set), {task}).ok());
      const std::vector<double> rows = ReferenceRows(page.Reference(*set));
      for (size_t j = 0; j < rows.size(); ++j) ASSERT_NEAR(page.rows[j], rows[j], 3e-5);
    }
  }
}

}  // namespace
}  // namespace fq
