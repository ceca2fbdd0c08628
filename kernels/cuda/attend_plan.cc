#include "kernels/cuda/attend_plan.h"

#include <algorithm>
#include <cmath>

namespace fq {
namespace {

constexpr int kTokens = 64;
// Costs of a 16-token tile of plain rows, and of starting a piece, in nanoseconds as in
// attend_heads.cc; pages cost what the caller says.
constexpr double kPlainTileCost = 140, kPieceCost = 250;

// What the merge takes longer when attention has all multiprocessors.
constexpr double kMergeCost = 1000;

bool IsPlain(AttendRun::Kind kind) {
  return kind == AttendRun::kExact || kind == AttendRun::kSinkRecord;
}

bool IsRefined(AttendRun::Kind kind) {
  return kind == AttendRun::kRefined || kind == AttendRun::kSinkRefined;
}

// A piece before it is cut: a run of one task.
struct Item {
  AttendPiece piece;
  double page_cost;
  bool plain;
};

class Planner {
 public:
  Planner(const AttendShape& shape, absl::Span<const AttendHead> heads,
          absl::Span<const AttendSequence> sequences)
      : shape_(shape), heads_(heads), sequences_(sequences) {}

  AttendPlan Run() {
    std::vector<std::vector<Item>> items(heads_.size());
    for (size_t head = 0; head < heads_.size(); ++head) MakeItems(head, &items[head]);
    std::vector<double> costs;
    for (const auto& of_head : items) costs.push_back(CostOf(of_head));
    const std::vector<int> blocks = ShareBlocks(costs);
    for (int count : blocks) plan_.blocks += count;
    plan_.warps = warps_;
    plan_.pieces.assign(plan_.blocks * warps_, NoPiece());
    int first = 0;
    for (size_t head = 0; head < heads_.size(); ++head) {
      plan_.records.insert(plan_.records.end(), blocks[head], heads_[head].record);
      Cut(items[head], first, blocks[head]);
      first += blocks[head];
    }
    NumberSlots();
    return std::move(plan_);
  }

 private:
  static AttendPiece NoPiece() {
    AttendPiece piece = {};
    piece.slot = piece.next = -1;
    return piece;
  }

  // The tasks of a head and their runs.
  void MakeItems(size_t head, std::vector<Item>* items) {
    const int group = shape_.queries_per_kv_head, all = group * static_cast<int>(heads_.size());
    for (const AttendSequence& sequence : sequences_) {
      const int rows = sequence.queries * group;
      for (int first = 0; first < rows; first += kAttendRows) {
        AttendTaskInfo task = {};
        for (int i = 0; i < kAttendRows; ++i) {
          const int row = first + i;
          task.rows[i] = row >= rows ? -1
                                     : (sequence.first_query + row / group) * all +
                                           static_cast<int>(head) * group + row % group;
        }
        for (const AttendRun& run : sequence.runs) {
          if (run.token_begin >= run.token_end) continue;
          if (!IsPlain(run.kind)) task.record = heads_[head].record;
          task.refined |= IsRefined(run.kind);
          items->push_back(MakeItem(heads_[head], run));
        }
        plan_.tasks.push_back(task);
      }
    }
  }

  Item MakeItem(const AttendHead& head, const AttendRun& run) const {
    Item item = {NoPiece(), 0, IsPlain(run.kind)};
    AttendPiece& piece = item.piece;
    piece.task = static_cast<int32_t>(plan_.tasks.size());
    piece.table_begin = run.table_begin;
    piece.token_begin = run.token_begin;
    piece.token_end = run.token_end;
    piece.page_count = (run.token_end + kTokens - 1) / kTokens;
    const bool refined = IsRefined(run.kind);
    const bool sink = run.kind == AttendRun::kSinkBase || run.kind == AttendRun::kSinkRefined;
    if (run.kind == AttendRun::kExact) {
      piece.code = kAttendExact;
      piece.offset = head.exact_offset;
      piece.bytes = head.exact_bytes;
      item.page_cost = 4 * kPlainTileCost;
    } else if (run.kind == AttendRun::kSinkRecord) {
      piece.code = kAttendSink;
      piece.offset = head.sink_record_offset;
      piece.bytes = head.sink_record_bytes;
      item.page_cost = kPlainTileCost;
    } else {
      piece.code = refined ? head.refined_code : head.base_code;
      piece.offset = sink ? head.sink_block_offset : head.base_offset;
      piece.bytes = head.base_bytes;
      piece.refinement_offset = head.refinement_offset;
      piece.refinement_bytes = refined ? head.refinement_bytes : 0;
      item.page_cost = refined ? head.refined_cost : head.base_cost;
    }
    return item;
  }

  static double CostOf(const std::vector<Item>& items) {
    double cost = 0;
    for (const Item& item : items) cost += kPieceCost + item.piece.page_count * item.page_cost;
    return cost;
  }

  // Blocks of each head: `count` in all, at least one each.
  static std::vector<int> ShareBlocks(const std::vector<double>& costs, int count) {
    std::vector<int> blocks(costs.size(), 1);
    for (int left = count - static_cast<int>(costs.size()); left > 0; --left) {
      ++blocks[MostOf(costs, blocks)];
    }
    return blocks;
  }

  // The head whose blocks have most to do.
  static size_t MostOf(const std::vector<double>& costs, const std::vector<int>& blocks) {
    size_t most = 0;
    for (size_t i = 1; i < costs.size(); ++i) {
      if (costs[i] / blocks[i] > costs[most] / blocks[most]) most = i;
    }
    return most;
  }

  // Spare blocks are used where that ends the work sooner by more than the merge loses.
  std::vector<int> ShareBlocks(const std::vector<double>& costs) const {
    std::vector<int> best;
    double earliest = 0;
    for (int spare = 0; spare <= shape_.spare_blocks; ++spare) {
      std::vector<int> blocks = ShareBlocks(costs, shape_.blocks + spare);
      const size_t most = MostOf(costs, blocks);
      const double end = costs[most] / blocks[most] + (spare > 0 ? kMergeCost : 0);
      if (!best.empty() && end >= earliest) continue;
      earliest = end;
      best = std::move(blocks);
    }
    return best;
  }

  // Gives each warp of the blocks its share of the items, in order.
  void Cut(const std::vector<Item>& items, int first_block, int blocks) {
    const int warps = blocks * warps_;
    const double share = CostOf(items) / warps;
    double done = 0;
    int warp = 0;
    for (const Item& item : items) {
      done += kPieceCost;
      for (int page = 0; page < item.piece.page_count;) {
        const double room = (warp + 1) * share - done;
        const int left = item.piece.page_count - page;
        int count = static_cast<int>(std::lround(room / item.page_cost));
        if (warp == warps - 1) count = left;
        if (count <= 0) {
          ++warp;
          continue;
        }
        count = std::min(count, left);
        AddPiece(item, page, count, first_block * warps_ + warp);
        page += count;
        done += count * item.page_cost;
      }
    }
  }

  void AddPiece(const Item& item, int page, int count, int warp) {
    AttendPiece piece = item.piece;
    piece.table_begin += page;
    piece.page_count = count;
    piece.token_begin = std::max(0, piece.token_begin - page * kTokens);
    piece.token_end = std::min(piece.token_end - page * kTokens, count * kTokens);
    const int previous = last_of_warp_ == warp ? last_piece_ : -1;
    last_of_warp_ = warp;
    if (previous < 0) {
      last_piece_ = warp;
      plan_.pieces[warp] = piece;
    } else {
      last_piece_ = static_cast<int>(plan_.pieces.size());
      plan_.pieces[previous].next = last_piece_;
      plan_.pieces.push_back(piece);
    }
  }

  // A slot for each piece, but one for neighbouring warps of a block that end in the same task and
  // domain: the block adds those up. Slots of a task are neighbours, coded ones first.
  void NumberSlots() {
    struct Owner {
      int task;
      bool plain;
    };
    std::vector<Owner> owners;
    std::vector<int> slot_of(plan_.pieces.size(), -1);
    const auto open = [&](int piece) {
      const AttendPiece& of = plan_.pieces[piece];
      owners.push_back({of.task, of.code < kAttendFirstProfile});
      return static_cast<int>(owners.size()) - 1;
    };
    for (int first = 0; first < plan_.blocks * warps_; first += warps_) {
      int shared = -1;
      for (int warp = first; warp < first + warps_; ++warp) {
        int piece = warp;
        if (plan_.pieces[piece].page_count == 0) {  // joins with nothing: runs have no holes
          slot_of[piece] = shared;
          continue;
        }
        for (; plan_.pieces[piece].next >= 0; piece = plan_.pieces[piece].next) {
          slot_of[piece] = open(piece);
        }
        const AttendPiece& last = plan_.pieces[piece];
        const bool joins = shared >= 0 && owners[shared].task == last.task &&
                           owners[shared].plain == (last.code < kAttendFirstProfile);
        if (!joins) shared = open(piece);
        slot_of[piece] = shared;
      }
    }
    for (const Owner& owner : owners) {
      AttendTaskInfo& task = plan_.tasks[owner.task];
      ++(owner.plain ? task.plain_count : task.coded_count);
    }
    for (AttendTaskInfo& task : plan_.tasks) {
      task.slot_begin = plan_.slots;
      plan_.slots += task.coded_count + task.plain_count;
    }
    std::vector<int> used_coded(plan_.tasks.size(), 0), used_plain = used_coded, number;
    for (const Owner& owner : owners) {
      const AttendTaskInfo& task = plan_.tasks[owner.task];
      number.push_back(task.slot_begin + (owner.plain ? task.coded_count + used_plain[owner.task]++
                                                      : used_coded[owner.task]++));
    }
    for (size_t i = 0; i < slot_of.size(); ++i) {
      if (slot_of[i] >= 0) plan_.pieces[i].slot = number[slot_of[i]];
    }
  }

  const AttendShape shape_;
  const int warps_ = AttendWarps(shape_.head_size);
  const absl::Span<const AttendHead> heads_;
  const absl::Span<const AttendSequence> sequences_;
  AttendPlan plan_;
  int last_of_warp_ = -1, last_piece_ = -1;
};

}  // namespace

int AttendBlocks(int multiprocessors) { return std::max(1, multiprocessors - kSpareBlocks); }

AttendPlan PlanAttend(const AttendShape& shape, absl::Span<const AttendHead> heads,
                      absl::Span<const AttendSequence> sequences) {
  return Planner(shape, heads, sequences).Run();
}

}  // namespace fq
