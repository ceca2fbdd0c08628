// Attention on a GPU against double precision on decoded values. Needs a GPU (`make test-gpu`).
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/codec/float_convert.h"
#include "tests/testing/attend_case.h"
#include "tests/testing/random.h"

#ifdef FQ_EMULATED
#include "tests/kernels/cuda/emulation/cuda_emulation.h"
#endif

namespace fq {
namespace {

using Page = AttendCase::Page;
using Sequence = AttendCase::Sequence;

std::string g_cache_folder;                 // --cache-folder
int g_replicated_tables = kMostReplicated;  // --replicated-tables

// Two heads whose profiles have every class, pairs of unequal groups included, and one of few bits.
std::vector<CodecProfile> Profiles(int head_size) {
  const auto grown = [&](std::vector<uint8_t> classes) {  // from 8 groups
    std::vector<uint8_t> all;
    for (int i = 0; i < head_size / 8; ++i) all.push_back(classes[i * 8 / (head_size / 8)]);
    if (head_size > 64) all[head_size / 16] = all[head_size / 16 - 1];
    return all;
  };
  return {{grown({8, 4, 4, 2, 2, 1, 1, 0}), grown({8, 4, 2, 2, 1, 1, 0, 0}),
           grown({0, 2, 2, 4, 2, 8, 1, 1}), grown({1, 2, 4, 2, 2, 2, 8, 0})},
          {grown({4, 2, 1, 1, 0, 0, 0, 0}), grown({8, 8, 4, 4, 4, 2, 2, 2}),
           grown({2, 2, 2, 2, 2, 2, 2, 2}), grown({1, 1, 0, 2, 2, 2, 2, 2})},
          {grown({0, 0, 0, 0, 0, 0, 0, 0}), grown({2, 0, 0, 0, 0, 0, 0, 0}),
           grown({2, 0, 0, 0, 0, 0, 0, 1}), grown({0, 4, 0, 0, 0, 0, 0, 0})}};
}

// `tokens` tokens in pages like `page`.
Sequence Pages(Page page, int tokens) {
  Sequence sequence;
  for (; tokens > 0; tokens -= 64) {
    page.tokens = std::min(tokens, 64);
    sequence.push_back(page);
  }
  return sequence;
}

class AttendDeviceTest : public testing::TestWithParam<int> {
 protected:
  AttendCase::Options options() const {
    AttendCase::Options options;
    options.set = MakeCodecSet(GetParam(), Profiles(GetParam()));
    options.replicated_tables = g_replicated_tables;
    options.cache_folder = g_cache_folder;
    return options;
  }

  // Every head against the reference; returns the result.
  static AttendCase::Result Check(AttendCase* made, const AttendCase::Options& options,
                                  int sequences) {
    auto result = made->Run();
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) return {};
    Errors worst;
    for (int s = 0; s < sequences; ++s) {
      for (int h = 0; h < options.set->kv_heads(); ++h) {
        const AttendCase::Rows rows = made->DecodedRows(s, h);
        for (int i = 0; i < options.queries * options.queries_per_kv_head; ++i) {
          const int row =
              made->RowOf(s, i / options.queries_per_kv_head, h, i % options.queries_per_kv_head);
          SCOPED_TRACE(absl::StrCat("sequence ", s, " head ", h, " row ", row));
          CheckRow(*made, options, rows, row, *result, &worst);
        }
      }
    }
    std::printf("worst relative L2 %.2e (of q unrounded %.2e), log-sum-exp %.2e (%.2e)\n",
                worst.out, worst.out_unrounded, worst.lse, worst.lse_unrounded);
    return *result;
  }

  AttendCase::Result RunAndCheck(const AttendCase::Options& options,
                                 const std::vector<Sequence>& sequences) {
    auto made = AttendCase::Create(options, sequences);
    EXPECT_TRUE(made.ok()) << made.status();
    if (!made.ok()) return {};
    return Check(made->get(), options, static_cast<int>(sequences.size()));
  }

  // However the work is split and in whatever order: the same bits each time, and the same bits
  // wherever the pages lie; between two ways at most twice what either may be off.
  void CheckSplits(const std::vector<Sequence>& sequences) const {
    AttendCase::Result reference;
    for (auto [blocks, backward] : {std::pair{1, false}, {5, false}, {56, true}, {300, false}}) {
      AttendCase::Options with = options();
      with.blocks = blocks;
      with.backward = backward;
      auto made = AttendCase::Create(with, sequences);
      ASSERT_TRUE(made.ok()) << made.status();
      const AttendCase::Result first = Check(made->get(), with, static_cast<int>(sequences.size()));
      for (int i = 0; i < 5; ++i) ExpectSameBits((*made)->Run(), first);
      with.placement = 8;
      auto elsewhere = AttendCase::Create(with, sequences);
      ASSERT_TRUE(elsewhere.ok()) << elsewhere.status();
      ExpectSameBits((*elsewhere)->Run(), first);
      if (reference.out.empty()) reference = first;
      ExpectAlike(**made, first, reference);
    }
  }

  static void ExpectSameBits(const absl::StatusOr<AttendCase::Result>& again,
                             const AttendCase::Result& first) {
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(std::memcmp(again->out.data(), first.out.data(), first.out.size() * 2), 0);
    EXPECT_EQ(std::memcmp(again->lse.data(), first.lse.data(), first.lse.size() * 4), 0);
  }

  static void ExpectAlike(const AttendCase& made, const AttendCase::Result& one,
                          const AttendCase::Result& other) {
    const int d = GetParam();
    for (int row = 0; row < made.rows(); ++row) {
      std::vector<double> expected;
      for (int c = 0; c < d; ++c) expected.push_back(made.ElementValue(other.out[row * d + c]));
      EXPECT_LE(ErrorOf(made, &one.out[row * d], expected), 2e-3) << row;
      if (std::isinf(other.lse[row])) {
        EXPECT_EQ(one.lse[row], other.lse[row]) << row;
      } else {
        EXPECT_NEAR(one.lse[row], other.lse[row], 2e-3) << row;
      }
    }
  }

  // Not a number in a query head: that head's results are none either, the others' bits stay.
  static void CheckPoisoned(const AttendCase::Options& with,
                            const std::vector<Sequence>& sequences) {
    auto made = AttendCase::Create(with, sequences);
    ASSERT_TRUE(made.ok()) << made.status();
    auto before = (*made)->Run();
    ASSERT_TRUE(before.ok()) << before.status();
    const int d = GetParam();
    const int poisoned[] = {(*made)->RowOf(0, 0, 1, 3), (*made)->RowOf(1, 0, 0, 6)};
    for (int row : poisoned)
      (*made)->q()[row * d + 2] = with.dtype == DType::kBF16 ? 0x7FC0 : 0x7E00;
    auto after = (*made)->Run();
    ASSERT_TRUE(after.ok()) << after.status();
    for (int row = 0; row < (*made)->rows(); ++row) {
      if (row == poisoned[0] || row == poisoned[1]) {
        EXPECT_TRUE(std::isnan((*made)->ElementValue(after->out[row * d]))) << row;
        EXPECT_TRUE(std::isnan(after->lse[row])) << row;
        continue;
      }
      EXPECT_EQ(std::memcmp(&after->out[row * d], &before->out[row * d], 2 * d), 0) << row;
      EXPECT_EQ(after->lse[row], before->lse[row]) << row;
    }
  }

  // Relative L2 of an output row; absolute where nothing is expected.
  static double ErrorOf(const AttendCase& made, const uint16_t* found,
                        const std::vector<double>& expected) {
    double error = 0, power = 0;
    for (size_t c = 0; c < expected.size(); ++c) {
      const double difference = made.ElementValue(found[c]) - expected[c];
      error += difference * difference;
      power += expected[c] * expected[c];
    }
    return power == 0 ? std::sqrt(error) : std::sqrt(error / power);
  }

 private:
  struct Errors {
    double out = 0, out_unrounded = 0, lse = 0, lse_unrounded = 0;
  };

  // Held to double precision, and more closely to the kernels' own arithmetic: of the query as they
  // round it. A score of a query that is no longer than ordinary is off by a few parts in 10,000
  // (DECISIONS.md), one of a longer query by as much more.
  static void CheckRow(const AttendCase& made, const AttendCase::Options& options,
                       const AttendCase::Rows& rows, int row, const AttendCase::Result& result,
                       Errors* worst) {
    const double limit = options.dtype == DType::kBF16 ? 6e-3 : 1e-3, lse_limit = 1e-3;
    const double longer = std::fmax(1, options.q_scale);
    const uint16_t* out = &result.out[static_cast<size_t>(row) * options.set->head_size()];
    const AttendedRow rounded = made.ExpectedOfRounded(rows, row, result);
    const AttendedRow expected = made.Expected(rows, row);
    const double error = ErrorOf(made, out, rounded.out);
    const double unrounded = ErrorOf(made, out, expected.out);
    EXPECT_LE(error, limit);
    EXPECT_LE(unrounded, limit * longer);
    worst->out = std::fmax(worst->out, error);
    worst->out_unrounded = std::fmax(worst->out_unrounded, unrounded);
    if (rows.k.empty()) {
      EXPECT_EQ(result.lse[row], -INFINITY);
      return;
    }
    const double lse_error = std::fabs(result.lse[row] - rounded.lse);
    const double lse_unrounded = std::fabs(result.lse[row] - expected.lse);
    EXPECT_LE(lse_error, lse_limit + 1e-5 * std::fabs(rounded.lse));
    EXPECT_LE(lse_unrounded, lse_limit * longer);
    worst->lse = std::fmax(worst->lse, lse_error);
    worst->lse_unrounded = std::fmax(worst->lse_unrounded, lse_unrounded);
  }
};

constexpr int kRaggedLengths[] = {0, 1, 15, 16, 17, 63, 64, 65, 1000, 4097};

TEST_P(AttendDeviceTest, BasePages_RaggedLengths_MatchDouble) {
  std::vector<Sequence> sequences;
  for (int tokens : kRaggedLengths) sequences.push_back(Pages({}, tokens));
  RunAndCheck(options(), sequences);
}

TEST_P(AttendDeviceTest, ExactPages_RaggedLengths_MatchDouble) {
  Page exact;
  exact.kind = PageKind::kExact;
  std::vector<Sequence> sequences;
  for (int tokens : kRaggedLengths) sequences.push_back(Pages(exact, tokens));
  RunAndCheck(options(), sequences);
}

TEST_P(AttendDeviceTest, AnySplitAndOrder_SameValuesAndSameBitsEachTime) {
  CheckSplits({Pages({}, 700), Pages({}, 65), Pages({}, 3000)});
}

TEST_P(AttendDeviceTest, SinkAndExactPages_InOneCall_MatchDouble) {
  std::vector<Sequence> sequences;
  for (int tokens : {5, 16, 17, 64}) {
    Page sink;
    sink.sink = true;
    sink.tokens = tokens;
    sequences.push_back({sink});
  }
  for (int last : {1, 17, 64}) {
    Page sink, exact;
    sink.sink = true;
    exact.kind = PageKind::kExact;
    Sequence sequence = {sink, {}, {}, {}, exact, exact};
    sequence.back().tokens = last;
    sequences.push_back(sequence);
    sequences.push_back({exact});
  }
  RunAndCheck(options(), sequences);
}

TEST_P(AttendDeviceTest, Refinements_MixedWithBasePages_MatchDouble) {
  Page refined, refined_sink, sink;
  refined.refined = refined_sink.refined = true;
  sink.sink = refined_sink.sink = true;
  Page last = refined;
  last.tokens = 17;
  std::vector<Sequence> sequences = {{refined_sink, refined, last}, {sink, {}, {}, refined, last}};
  for (int tokens : kRaggedLengths) sequences.push_back(Pages(refined, tokens));
  RunAndCheck(options(), sequences);
}

TEST_P(AttendDeviceTest, QueryHeads_OneToSixteen_MatchDouble) {
  for (int heads = 1; heads <= 16; ++heads) {
    AttendCase::Options with = options();
    with.queries_per_kv_head = heads;
    RunAndCheck(with, {Pages({}, 200), Pages({}, 1)});
  }
}

TEST_P(AttendDeviceTest, ManyQueries_OverAPrefix_MatchDouble) {
  for (auto [queries, heads] : {std::pair{64, 4}, {63, 1}, {2, 16}, {5, 3}}) {
    AttendCase::Options with = options();
    with.queries = queries;
    with.queries_per_kv_head = heads;
    RunAndCheck(with, {Pages({}, 300), Pages({}, 64)});
  }
}

TEST_P(AttendDeviceTest, BFloat16_AllPageKinds_MatchDouble) {
  AttendCase::Options with = options();
  with.dtype = DType::kBF16;
  Page sink, exact;
  sink.sink = true;
  exact.kind = PageKind::kExact;
  exact.tokens = 33;
  std::vector<Sequence> sequences = {{sink, {}, {}, exact}};
  for (int tokens : kRaggedLengths) sequences.push_back(Pages({}, tokens));
  RunAndCheck(with, sequences);
}

TEST_P(AttendDeviceTest, Scores_EqualTinyAndHuge_MatchDouble) {
  for (float scale : {0.0f, 1e-6f, 1e-4f, 8.0f, 300.0f}) {
    AttendCase::Options with = options();
    with.q_scale = scale;
    RunAndCheck(with, {Pages({}, 1000), Pages({}, 4097)});
  }
}

// Every query is for one token, whose weight is nearly all: early, late, and in between. Queries
// as the codec set expects them; and queries along the token's key, whose score of 60 is made of
// all components, those behind the first 16 as well: it may be off by 1.2e-4 of itself.
TEST_P(AttendDeviceTest, OneDominantToken_MatchesDouble) {
  const int d = GetParam(), wanted[] = {0, 63, 64, 1000, 4000, 4095, 4096};
  for (bool along_key : {false, true}) {
    AttendCase::Options with = options();
    auto made = AttendCase::Create(with, {Pages({}, 4097)});
    ASSERT_TRUE(made.ok()) << made.status();
    for (int h = 0; h < with.set->kv_heads(); ++h) {
      const AttendCase::Rows rows = (*made)->DecodedRows(0, h);
      for (int i = 0; i < with.queries_per_kv_head; ++i) {
        const double* u = &rows.base[static_cast<size_t>(wanted[i % 7]) * d];
        std::vector<double> components(d);
        double score = 0;
        for (int c = 0; c < d; ++c) {
          components[c] = u[c] * (along_key ? 1 : with.set->k(0, h).weight[c]);
          score += components[c] * u[c] * (*made)->scale();
        }
        const double factor = score == 0 ? 0 : (along_key ? 60 : 20) / score;
        for (double& component : components) component *= factor;
        (*made)->SetQuery((*made)->RowOf(0, 0, h, i), components);
      }
    }
    if (along_key) with.q_scale = 7;
    Check(made->get(), with, 1);
  }
}

TEST_P(AttendDeviceTest, NaNInOneHead_OthersUnchanged) {
  Page sink, exact;
  sink.sink = true;
  exact.kind = PageKind::kExact;
  for (DType dtype : {DType::kF16, DType::kBF16}) {
    AttendCase::Options with = options();
    with.dtype = dtype;
    CheckPoisoned(with, {Pages({}, 500), {sink, {}, exact}});
  }
}

TEST_P(AttendDeviceTest, Refinements_NaNInOneHead_OthersUnchanged) {
  Page refined, refined_sink;
  refined.refined = refined_sink.refined = refined_sink.sink = true;
  CheckPoisoned(options(), {Pages(refined, 200), {refined_sink, {}, refined}});
}

TEST_P(AttendDeviceTest, Refinements_AnySplitAndOrder_SameValuesAndSameBitsEachTime) {
  Page refined;
  refined.refined = true;
  CheckSplits({Pages(refined, 200), Pages(refined, 65), Pages({}, 100)});
}

TEST_P(AttendDeviceTest, LongSequence_MatchesDouble) {
  AttendCase::Options with = options();
  with.queries_per_kv_head = 2;
  RunAndCheck(with, {Pages({}, 131072)});
}

// One position further back for each token, a token whose K and V are not kept, and the cache's
// slots in no order.
AttendCase::Rope RandomRope(const AttendCase::Options& options, int tokens) {
  const int d = options.set->head_size(), row = options.set->kv_heads() * d;
  const auto element = [&](double value) {
    const float rounded = static_cast<float>(value);
    return options.dtype == DType::kBF16 ? FloatToBFloat16(rounded) : FloatToHalf(rounded);
  };
  Random random(options.seed + 11);
  AttendCase::Rope rope;
  for (int i = 0; i < tokens * row; ++i) {
    rope.k.push_back(element(random.Gaussian()));
    rope.v.push_back(element(random.Gaussian()));
  }
  for (int position = 0; position < tokens + 5; ++position) {
    for (int i = 0; i < d; ++i) {
      const double angle = position * std::pow(10000.0, -2.0 * (i % (d / 2)) / d);
      rope.cos_sin.push_back(element(i < d / 2 ? std::cos(angle) : std::sin(angle)));
    }
  }
  for (int token = 0; token < tokens; ++token) {
    rope.positions.push_back(tokens + 4 - token);
    rope.slots.push_back(token == 1 ? -1 : token * 7 % 64);
  }
  rope.key_cache.assign(64 * row, 0x5555);
  rope.value_cache.assign(64 * row, 0x5555);
  return rope;
}

// Rows of the rotation, `from` [tokens][heads][d], where `at` says they are.
void CheckRotated(const AttendCase& made, const AttendCase::Rope& rope, int d, int heads,
                  const std::vector<uint16_t>& from,
                  const std::function<const uint16_t*(int, int)>& at) {
  for (size_t i = 0; i < from.size() / d; ++i) {
    const int token = static_cast<int>(i) / heads, head = static_cast<int>(i) % heads;
    const uint16_t* found = at(token, head);
    if (found == nullptr) continue;
    const uint16_t* angles = &rope.cos_sin[rope.positions[token] * d];
    for (int c = 0; c < d; ++c) {
      const int pair = c % (d / 2), other = (c + d / 2) % d;
      const double cosine = made.ElementValue(angles[pair]),
                   sine = made.ElementValue(angles[d / 2 + pair]) * (c < d / 2 ? -1 : 1);
      const double a = made.ElementValue(from[i * d + c]) * cosine,
                   b = made.ElementValue(from[i * d + other]) * sine;
      // Half a unit in the last place of FP16 or BF16, and what FP32 loses where a and b cancel.
      EXPECT_NEAR(made.ElementValue(found[c]), a + b,
                  std::fabs(a + b) * (made.bf16() ? 0x1p-8 : 0x1p-11) +
                      (std::fabs(a) + std::fabs(b)) * 0x1p-22 + 0x1p-24)
          << token << ' ' << head << ' ' << c;
    }
  }
}

// Queries and keys rotated, keys and values where the slots say and nowhere else, and from then on
// the same bits as when the rotated queries come from somewhere else.
TEST_P(AttendDeviceTest, Rope_AppendsAndPreparesTheSameQueries) {
  for (DType dtype : {DType::kF16, DType::kBF16}) {
    AttendCase::Options with = options();
    with.dtype = dtype;
    with.queries = 2;
    const int heads = with.set->kv_heads(), d = GetParam(), tokens = 6;
    auto made = AttendCase::Create(with, {Pages({}, 200), Pages({}, 0), Pages({}, 65)});
    ASSERT_TRUE(made.ok()) << made.status();
    AttendCase::Rope rope = RandomRope(with, tokens);
    auto behind = (*made)->RunBehindRope(&rope);
    ASSERT_TRUE(behind.ok()) << behind.status();
    const int query_heads = heads * with.queries_per_kv_head;
    CheckRotated(**made, rope, d, query_heads, (*made)->q(), [&](int token, int head) {
      return &rope.rotated_q[(token * query_heads + head) * d];
    });
    CheckRotated(**made, rope, d, heads, rope.k, [&](int token, int head) {
      return rope.slots[token] < 0 ? nullptr
                                   : &rope.key_cache[(rope.slots[token] * heads + head) * d];
    });
    std::vector<uint16_t> values(rope.value_cache.size(), 0x5555);
    for (int token = 0; token < tokens; ++token) {
      if (rope.slots[token] < 0) continue;
      std::copy_n(&rope.v[token * heads * d], heads * d, &values[rope.slots[token] * heads * d]);
    }
    EXPECT_EQ(values, rope.value_cache);
    for (size_t i = 0; i < values.size(); ++i) {
      if (values[i] == 0x5555) {
        ASSERT_EQ(rope.key_cache[i], 0x5555) << i;
      }
    }
    (*made)->q() = rope.rotated_q;
    auto apart = (*made)->Run();
    ASSERT_TRUE(apart.ok()) << apart.status();
    EXPECT_EQ(behind->queries, apart->queries);
    EXPECT_EQ(behind->out, apart->out);
    EXPECT_EQ(behind->lse, apart->lse);
  }
}

#ifdef FQ_EMULATED
INSTANTIATE_TEST_SUITE_P(HeadSizes, AttendDeviceTest, testing::Values(FQ_HEAD_SIZE));
#else
INSTANTIATE_TEST_SUITE_P(HeadSizes, AttendDeviceTest, testing::Values(64, 128, 256));
#endif

}  // namespace
}  // namespace fq

// --quick leaves out the long sequence; --cache-folder=FOLDER keeps compiled kernels;
// --replicated-tables=N is as on a GPU with room for no more (attend_shared.h). On the emulated
// GPU, --schedule=backward or shuffled is the order in which threads run.
int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i],
                      folder = "--cache-folder=", tables = "--replicated-tables=";
    if (argument == "--quick") testing::GTEST_FLAG(filter) = "-*Long*";
    if (argument.rfind(folder, 0) == 0) fq::g_cache_folder = argument.substr(folder.size());
    if (argument.rfind(tables, 0) == 0) {
      fq::g_replicated_tables = std::stoi(argument.substr(tables.size()));
    }
#ifdef FQ_EMULATED
    using fq::emulation::Schedule;
    if (argument == "--schedule=backward") fq::emulation::SetSchedule(Schedule::kBackward);
    if (argument == "--schedule=shuffled") fq::emulation::SetSchedule(Schedule::kShuffled);
#endif
  }
  return RUN_ALL_TESTS();
}
