// Attention on a GPU against double precision on decoded values. Needs a GPU (`make test-gpu`).
#include <cmath>
#include <cstring>

#include "gtest/gtest.h"
#include "tests/testing/attend_case.h"

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

Sequence BasePages(int tokens) {
  Sequence sequence;
  for (; tokens > 0; tokens -= 64) {
    Page page;
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
                                  int sequences, double limit) {
    auto result = made->Run();
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) return {};
    const int d = options.set->head_size();
    // A score is off by the rounding of the query to FP16 in the coded domain, in proportion to
    // the query; over more than a few tokens that averages out.
    const double lse_limit = 2 * limit * std::fmax(1.0, options.q_scale);
    double worst = 0, worst_lse = 0;
    for (int s = 0; s < sequences; ++s) {
      for (int h = 0; h < options.set->kv_heads(); ++h) {
        const AttendCase::Rows rows = made->DecodedRows(s, h);
        for (int i = 0; i < options.queries * options.queries_per_kv_head; ++i) {
          const int row =
              made->RowOf(s, i / options.queries_per_kv_head, h, i % options.queries_per_kv_head);
          const AttendedRow expected = made->Expected(rows, row);
          double error = 0, power = 0;
          for (int c = 0; c < d; ++c) {
            const double found = made->ElementValue(result->out[row * d + c]);
            error += (found - expected.out[c]) * (found - expected.out[c]);
            power += expected.out[c] * expected.out[c];
          }
          const double relative = rows.k.empty() ? std::sqrt(error) : std::sqrt(error / power);
          EXPECT_LE(relative, limit) << "sequence " << s << " head " << h << " row " << row;
          worst = std::fmax(worst, relative);
          if (rows.k.empty()) {
            EXPECT_EQ(result->lse[row], -INFINITY);
          } else {
            EXPECT_NEAR(result->lse[row], expected.lse, lse_limit) << "row " << row;
            worst_lse = std::fmax(worst_lse, std::fabs(result->lse[row] - expected.lse));
          }
        }
      }
    }
    printf("worst relative L2 %.2e, log-sum-exp %.2e\n", worst, worst_lse);
    return *result;
  }

  AttendCase::Result RunAndCheck(const AttendCase::Options& options,
                                 const std::vector<Sequence>& sequences, double limit) {
    auto made = AttendCase::Create(options, sequences);
    EXPECT_TRUE(made.ok()) << made.status();
    if (!made.ok()) return {};
    return Check(made->get(), options, static_cast<int>(sequences.size()), limit);
  }
};

constexpr double kF16Limit = 1e-3, kBF16Limit = 6e-3;

TEST_P(AttendDeviceTest, BasePages_RaggedLengths_MatchDouble) {
  std::vector<Sequence> sequences;
  for (int tokens : {0, 1, 15, 16, 17, 63, 64, 65, 1000, 4097}) {
    sequences.push_back(BasePages(tokens));
  }
  RunAndCheck(options(), sequences, kF16Limit);
}

TEST_P(AttendDeviceTest, AnySplit_SameValuesAndSameBitsEachTime) {
  for (int blocks : {1, 5, 56, 300}) {
    AttendCase::Options with = options();
    with.blocks = blocks;
    auto made = AttendCase::Create(with, {BasePages(700), BasePages(65), BasePages(3000)});
    ASSERT_TRUE(made.ok()) << made.status();
    const AttendCase::Result first = Check(made->get(), with, 3, kF16Limit);
    for (int i = 0; i < 5; ++i) {
      auto again = (*made)->Run();
      ASSERT_TRUE(again.ok()) << again.status();
      EXPECT_EQ(std::memcmp(again->out.data(), first.out.data(), first.out.size() * 2), 0);
      EXPECT_EQ(std::memcmp(again->lse.data(), first.lse.data(), first.lse.size() * 4), 0);
    }
  }
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
  RunAndCheck(options(), sequences, kF16Limit);
}

TEST_P(AttendDeviceTest, Refinements_MixedWithBasePages_MatchDouble) {
  Page refined, refined_sink, sink;
  refined.refined = refined_sink.refined = true;
  sink.sink = refined_sink.sink = true;
  Page last = refined;
  last.tokens = 17;
  Sequence long_one(60, refined);
  RunAndCheck(
      options(),
      {{refined}, {last}, {refined_sink, refined, last}, {sink, {}, {}, refined, last}, long_one},
      kF16Limit);
}

TEST_P(AttendDeviceTest, QueryHeads_OneToSixteen_MatchDouble) {
  for (int heads : {1, 2, 7, 9, 16}) {
    AttendCase::Options with = options();
    with.queries_per_kv_head = heads;
    RunAndCheck(with, {BasePages(200), BasePages(1)}, kF16Limit);
  }
}

TEST_P(AttendDeviceTest, ManyQueries_OverAPrefix_MatchDouble) {
  AttendCase::Options with = options();
  with.queries = 64;
  with.queries_per_kv_head = 4;
  RunAndCheck(with, {BasePages(300), BasePages(64)}, kF16Limit);
}

TEST_P(AttendDeviceTest, BFloat16_AllPageKinds_MatchDouble) {
  AttendCase::Options with = options();
  with.dtype = DType::kBF16;
  Page sink, exact;
  sink.sink = true;
  exact.kind = PageKind::kExact;
  exact.tokens = 33;
  RunAndCheck(with, {{sink, {}, {}, exact}, BasePages(1000)}, kBF16Limit);
}

TEST_P(AttendDeviceTest, Scores_TinyHugeAndDominant_MatchDouble) {
  for (float scale : {0.0f, 1e-4f, 8.0f}) {
    AttendCase::Options with = options();
    with.q_scale = scale;
    RunAndCheck(with, {BasePages(1000), BasePages(4097)}, scale > 1 ? 4 * kF16Limit : kF16Limit);
  }
}

TEST_P(AttendDeviceTest, NaNInOneHead_OthersUnchanged) {
  const AttendCase::Options with = options();
  auto made = AttendCase::Create(with, {BasePages(500)});
  ASSERT_TRUE(made.ok()) << made.status();
  auto before = (*made)->Run();
  ASSERT_TRUE(before.ok()) << before.status();
  const int d = GetParam(), poisoned = (*made)->RowOf(0, 0, 1, 3);
  (*made)->q()[poisoned * d + 2] = 0x7E00;
  auto after = (*made)->Run();
  ASSERT_TRUE(after.ok()) << after.status();
  for (int row = 0; row < (*made)->rows(); ++row) {
    if (row == poisoned) {
      EXPECT_TRUE(std::isnan((*made)->ElementValue(after->out[row * d])));
      continue;
    }
    EXPECT_EQ(std::memcmp(&after->out[row * d], &before->out[row * d], 2 * d), 0) << row;
  }
}

TEST_P(AttendDeviceTest, LongSequence_MatchesDouble) {
  AttendCase::Options with = options();
  with.queries_per_kv_head = 2;
  RunAndCheck(with, {BasePages(131072)}, kF16Limit);
}

INSTANTIATE_TEST_SUITE_P(HeadSizes, AttendDeviceTest, testing::Values(64, 128, 256));

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
