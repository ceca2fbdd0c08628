#include "kernels/cuda/attend_launch.h"

#include "absl/strings/str_cat.h"
#include "kernels/cuda/attend_query.cuh"
#include "kernels/cuda/attend_start.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/merge.cuh"

namespace fq {
namespace {

// The kernels before and after for one head size and element type.
struct EdgeKernels {
  const void* prepare = nullptr;
  const void* merge = nullptr;
  int merge_threads = 0;
};
// Tasks fewer than this leave multiprocessors idle: then a task's slots are shared out.
constexpr int kFewTasks = 64;

template <int kHeadSize, bool kBf16>
EdgeKernels Edges(bool few) {
  constexpr int kTeams = kHeadSize == 64 ? 4 : kHeadSize == 128 ? 2 : 1;
  EdgeKernels kernels;
  kernels.prepare = reinterpret_cast<const void*>(&PrepareQueries<kHeadSize, kBf16>);
  kernels.merge = few ? reinterpret_cast<const void*>(&MergeTasks<kHeadSize, kBf16, kTeams>)
                      : reinterpret_cast<const void*>(&MergeTasks<kHeadSize, kBf16, 1>);
  kernels.merge_threads = MergeThreads(kHeadSize, few ? kTeams : 1);
  return kernels;
}
EdgeKernels EdgesOf(int head_size, bool bf16, bool few) {
  switch (head_size) {
    case 64:
      return bf16 ? Edges<64, true>(few) : Edges<64, false>(few);
    case 128:
      return bf16 ? Edges<128, true>(few) : Edges<128, false>(few);
    case 256:
      return bf16 ? Edges<256, true>(few) : Edges<256, false>(few);
    default:
      return {};
  }
}

}  // namespace

absl::StatusOr<AttendWorkspace> AttendWorkspace::Create(const AttendPlan& plan, int head_size) {
  if (plan.warps != AttendWarps(head_size)) {
    return absl::InvalidArgumentError(absl::StrCat("the plan is for ", plan.warps,
                                                   " warps a block; head_size ", head_size, " has ",
                                                   AttendWarps(head_size)));
  }
  AttendWorkspace workspace;
  workspace.blocks_ = plan.blocks;
  workspace.tasks_ = static_cast<int>(plan.tasks.size());
  const size_t row_bytes = sizeof(float) * kAttendRows;
  const size_t slots = std::max(plan.slots, 1);
  const auto copy = [](const auto& vector) {
    return DeviceBuffer::CopyOf(vector.data(), vector.size() * sizeof(vector[0]));
  };
  FQ_ASSIGN_OR_RETURN(workspace.pieces_, copy(plan.pieces));
  FQ_ASSIGN_OR_RETURN(workspace.records_, copy(plan.records));
  FQ_ASSIGN_OR_RETURN(workspace.task_infos_, copy(plan.tasks));
  FQ_ASSIGN_OR_RETURN(
      workspace.queries_,
      DeviceBuffer::Allocate(plan.tasks.size() * AttendQueryLayout{head_size}.Bytes()));
  FQ_ASSIGN_OR_RETURN(workspace.values_, DeviceBuffer::Allocate(slots * row_bytes * head_size));
  FQ_ASSIGN_OR_RETURN(workspace.stats_, DeviceBuffer::Allocate(slots * row_bytes * 2));
  return workspace;
}

AttendParams AttendWorkspace::params() const {
  AttendParams params = {};
  params.pieces = pieces_.as<AttendPiece>();
  params.records = records_.as<const std::byte*>();
  params.queries = queries_.as<std::byte>();
  params.values = values_.as<float>();
  params.stats = stats_.as<float>();
  return params;
}

absl::Status LaunchAttend(const AttendKernel& kernel, const AttendWorkspace& workspace,
                          const AttendInputs& inputs, cudaStream_t stream, int steps) {
  const int d = kernel.head_size();
  const EdgeKernels edges = EdgesOf(d, kernel.bf16(), workspace.tasks() < kFewTasks);
  if (edges.prepare == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("head_size is ", d, ", not 64, 128 or 256"));
  }
  AttendParams params = workspace.params();
  params.pool = inputs.pool;
  params.pages = inputs.pages;
  params.refinements = inputs.refinements;
  params.scale = inputs.scale * kLog2E;
  if (steps & kAttendQueries) {
    const QueryParams query = {workspace.task_infos(), workspace.tasks(), inputs.q,
                               workspace.queries(), params.scale};
    FQ_RETURN_IF_ERROR(LaunchKernel(
        {edges.prepare, QueryBlocks(d, workspace.tasks()), kQueryThreads, 0, true}, query, stream));
  }
  if (steps & kAttendPages) {
    // Those kernels let it start when whatever was before them has finished.
    const bool early = (steps & (kAttendQueries | kAttendEarly)) != 0;
    FQ_RETURN_IF_ERROR(LaunchKernel(
        {kernel.function(), workspace.blocks(), AttendWarps(d) * 32, kernel.shared_bytes(), early},
        params, stream));
  }
  if (steps & kAttendMerge) {
    const MergeParams merge = {workspace.task_infos(), params.values, params.stats, inputs.out,
                               inputs.lse};
    FQ_RETURN_IF_ERROR(LaunchKernel({edges.merge, workspace.tasks(), edges.merge_threads, 0, true},
                                    merge, stream));
  }
  return absl::OkStatus();
}

}  // namespace fq
