#include "kernels/cuda/attend_plan.h"

#include <algorithm>
#include <map>
#include <set>

#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace fq {
namespace {

constexpr int kBaseCode = kAttendFirstProfile;

std::vector<AttendHead> Heads(int count) {
  std::vector<AttendHead> heads(count);
  for (int i = 0; i < count; ++i) {
    heads[i].base_code = kBaseCode + i;
    heads[i].base_cost = 300 + 100 * i;
    heads[i].base_offset = 1000 * i;
    heads[i].record = reinterpret_cast<const std::byte*>(intptr_t{64} * (i + 1));
  }
  return heads;
}

// Sequences of base pages whose entries follow each other in the page table.
std::vector<AttendSequence> Sequences(const std::vector<int>& lengths) {
  std::vector<AttendSequence> sequences;
  int table = 0;
  for (int tokens : lengths) {
    AttendSequence sequence;
    sequence.runs = {{AttendRun::kBase, table, 0, tokens}};
    sequence.first_query = static_cast<int>(sequences.size());
    sequences.push_back(sequence);
    table += (tokens + 63) / 64;
  }
  return sequences;
}

// Pieces of a warp in their order.
std::vector<AttendPiece> PiecesOf(const AttendPlan& plan, int warp) {
  std::vector<AttendPiece> pieces;
  for (int i = warp; i >= 0 && plan.pieces[i].page_count > 0; i = plan.pieces[i].next) {
    pieces.push_back(plan.pieces[i]);
  }
  return pieces;
}

struct Case {
  int blocks, heads;
  std::vector<int> lengths;
};

class AttendPlanTest : public testing::TestWithParam<Case> {
 protected:
  AttendPlan plan() const {
    return PlanAttend({GetParam().blocks, 8}, Heads(GetParam().heads),
                      Sequences(GetParam().lengths));
  }
};

TEST_P(AttendPlanTest, EveryToken_InExactlyOnePiece) {
  const AttendPlan made = plan();
  std::map<std::pair<int, int>, int> seen;  // (task, global token) -> times
  for (int warp = 0; warp < made.blocks * made.warps; ++warp) {
    for (const AttendPiece& piece : PiecesOf(made, warp)) {
      EXPECT_LE(piece.token_end, 64 * piece.page_count);
      EXPECT_GT(piece.token_end, 64 * (piece.page_count - 1));
      for (int t = piece.token_begin; t < piece.token_end; ++t) {
        ++seen[{piece.task, 64 * piece.table_begin + t}];
      }
    }
  }
  size_t tokens = 0;
  for (int length : GetParam().lengths) tokens += length * GetParam().heads;
  EXPECT_EQ(seen.size(), tokens);
  for (const auto& [key, times] : seen) ASSERT_EQ(times, 1) << key.first << ' ' << key.second;
}

TEST_P(AttendPlanTest, Blocks_ServeOneHead) {
  const AttendPlan made = plan();
  ASSERT_EQ(made.records.size(), static_cast<size_t>(made.blocks));
  for (int warp = 0; warp < made.blocks * made.warps; ++warp) {
    for (const AttendPiece& piece : PiecesOf(made, warp)) {
      EXPECT_EQ(made.tasks[piece.task].record, made.records[warp / made.warps]);
      EXPECT_EQ(piece.offset, 1000 * (piece.code - kBaseCode));
    }
  }
}

// The kernel adds up neighbouring warps with one slot; nobody else may write it.
TEST_P(AttendPlanTest, Slots_EachWrittenOnceAndTasksContiguous) {
  const AttendPlan made = plan();
  std::map<int, int> task_of, writes;
  for (int block = 0; block < made.blocks; ++block) {
    int previous = -1;
    for (int warp = block * made.warps; warp < (block + 1) * made.warps; ++warp) {
      const std::vector<AttendPiece> pieces = PiecesOf(made, warp);
      for (size_t i = 0; i + 1 < pieces.size(); ++i) ++writes[pieces[i].slot];
      for (const AttendPiece& piece : pieces) {
        const auto [at, fresh] = task_of.insert({piece.slot, piece.task});
        EXPECT_EQ(at->second, piece.task);
      }
      const int last = pieces.empty() ? made.pieces[warp].slot : pieces.back().slot;
      if (last >= 0 && last != previous) ++writes[last];
      previous = last;
    }
  }
  EXPECT_EQ(writes.size(), static_cast<size_t>(made.slots));
  for (const auto& [slot, times] : writes) EXPECT_EQ(times, 1) << slot;
  for (size_t task = 0; task < made.tasks.size(); ++task) {
    const AttendTaskInfo& info = made.tasks[task];
    for (int i = 0; i < info.coded_count; ++i) {
      EXPECT_EQ(task_of.at(info.slot_begin + i), static_cast<int>(task));
    }
  }
}

// No warp has more than its share and a page.
TEST_P(AttendPlanTest, Work_Balanced) {
  const AttendPlan made = plan();
  const std::vector<AttendHead> heads = Heads(GetParam().heads);
  std::map<const std::byte*, std::vector<double>> work;
  for (int warp = 0; warp < made.blocks * made.warps; ++warp) {
    double sum = 0;
    for (const AttendPiece& piece : PiecesOf(made, warp)) {
      sum += piece.page_count * heads[piece.code - kBaseCode].base_cost;
    }
    work[made.records[warp / made.warps]].push_back(sum);
  }
  for (int h = 0; h < GetParam().heads; ++h) {
    const std::vector<double>& warps = work[heads[h].record];
    double total = 0;
    for (double w : warps) total += w;
    const double share = total / warps.size();
    EXPECT_LE(*std::max_element(warps.begin(), warps.end()),
              share * 1.05 + 1.5 * heads[h].base_cost + 200)
        << h;
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, AttendPlanTest,
                         testing::Values(Case{132, 8, {32768}}, Case{132, 8, {131072}},
                                         Case{132, 8, {1}}, Case{132, 8, {64, 65, 1, 4097}},
                                         Case{5, 2, {700, 65, 3000}}, Case{1, 3, {700, 65, 3000}},
                                         Case{300, 3, {700, 65, 3000}},
                                         Case{132, 8, std::vector<int>(32, 8192)}));

// Costs of eight profiles of 1.3 to 2.9 bits a value: spare blocks are for them, not for equals.
TEST(AttendPlanBlocksTest, SpareBlocks_UsedWhereHeadsEndTogetherThen) {
  const std::vector<AttendSequence> sequences = Sequences(std::vector<int>(64, 32768));
  std::vector<AttendHead> heads = Heads(8);
  for (AttendHead& head : heads) head.base_cost = 160;
  EXPECT_EQ(PlanAttend({128, 8, 128, 4}, heads, sequences).blocks, 128);
  const double costs[] = {155, 105, 197, 159, 108, 169, 172, 160};
  for (int i = 0; i < 8; ++i) heads[i].base_cost = costs[i];
  const AttendPlan plan = PlanAttend({128, 8, 128, 4}, heads, sequences);
  EXPECT_GT(plan.blocks, 128);
  std::map<const std::byte*, double> blocks;
  for (const std::byte* record : plan.records) ++blocks[record];
  for (int i = 0; i < 8; ++i) {
    EXPECT_LE(costs[i] / blocks[heads[i].record], 1.03 * 1225 / plan.blocks) << i;
  }
}

TEST(AttendPlanRunsTest, SinkAndExactRuns_PlainSlotsBehindCodedOnes) {
  AttendSequence sequence;
  sequence.runs = {{AttendRun::kSinkRecord, 0, 0, 16},
                   {AttendRun::kSinkBase, 0, 16, 64},
                   {AttendRun::kBase, 1, 0, 640},
                   {AttendRun::kExact, 11, 0, 100}};
  const AttendPlan plan = PlanAttend({8, 8}, Heads(1), {sequence});
  ASSERT_EQ(plan.tasks.size(), 1u);
  const AttendTaskInfo& task = plan.tasks[0];
  EXPECT_GT(task.plain_count, 0);
  for (int warp = 0; warp < plan.blocks * plan.warps; ++warp) {
    for (const AttendPiece& piece : PiecesOf(plan, warp)) {
      const bool plain = piece.code < kAttendFirstProfile;
      EXPECT_EQ(piece.slot - task.slot_begin >= task.coded_count, plain);
    }
  }
}

TEST(AttendPlanRunsTest, HeadSize256_FewerWarpsWithMoreRegisters) {
  const AttendPlan small = PlanAttend({4, 8, 128}, Heads(1), Sequences({4096}));
  const AttendPlan large = PlanAttend({4, 8, 256}, Heads(1), Sequences({4096}));
  EXPECT_EQ(small.warps, 12);
  EXPECT_EQ(large.warps, 8);
  EXPECT_EQ(large.pieces.size(), 4u * 8);
}

TEST(AttendPlanRunsTest, NoTokens_TaskWithoutSlots) {
  const AttendPlan plan = PlanAttend({132, 8}, Heads(2), {AttendSequence{}});
  ASSERT_EQ(plan.tasks.size(), 2u);
  EXPECT_EQ(plan.slots, 0);
  EXPECT_EQ(plan.tasks[1].rows[7], 15);
}

TEST(AttendPlanRunsTest, MoreQueriesThanRows_SeveralTasks) {
  AttendSequence sequence = Sequences({64})[0];
  sequence.first_query = 3;
  sequence.queries = 2;
  const AttendPlan plan = PlanAttend({4, 5}, Heads(2), {sequence});
  ASSERT_EQ(plan.tasks.size(), 4u);  // 10 rows of each head: 8 and 2
  EXPECT_EQ(plan.tasks[0].rows[0], 3 * 10);
  EXPECT_EQ(plan.tasks[0].rows[5], 4 * 10);
  EXPECT_EQ(plan.tasks[1].rows[1], 4 * 10 + 4);
  EXPECT_EQ(plan.tasks[1].rows[2], -1);
  EXPECT_EQ(plan.tasks[2].rows[0], 3 * 10 + 5);
}

}  // namespace
}  // namespace fq
