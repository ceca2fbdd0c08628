// Attention over encoded pages on a GPU: q transform, attention, merge with output transform, three
// kernels on one stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "kernels/cuda/attend_compile.h"
#include "kernels/cuda/attend_plan.h"
#include "kernels/cuda/device_buffer.h"

namespace fq {

// A plan on the device, with room for what the kernels leave each other. One call at a time may use
// it; not thread-safe.
class AttendWorkspace {
 public:
  // InvalidArgument where the plan was made for another head size, whose blocks have other warps.
  static absl::StatusOr<AttendWorkspace> Create(const AttendPlan& plan, int head_size);

  int blocks() const { return blocks_; }
  int tasks() const { return tasks_; }
  const AttendTaskInfo* task_infos() const { return task_infos_.as<AttendTaskInfo>(); }
  AttendParams params() const;
  std::byte* queries() const { return queries_.as<std::byte>(); }  // [tasks] AttendQueryLayout

 private:
  int blocks_ = 0, tasks_ = 0;
  DeviceBuffer pieces_, records_, task_infos_, queries_, values_, stats_;
};

// Pointers to device memory; elements are FP16, or BF16 if the kernel was compiled for it.
struct AttendInputs {
  const void* q = nullptr;                // [rows][d]
  const std::byte* pool = nullptr;        // what the page tables count from
  const uint32_t* pages = nullptr;        // [entries] in 64 bytes from `pool`, see AttendHead
  const uint32_t* refinements = nullptr;  // [entries], read by refined runs only
  float scale = 1.0f;                     // of the softmax
  void* out = nullptr;                    // [rows][d]
  float* lse = nullptr;                   // [rows], natural logarithm
};

// Steps of a call. Behind LaunchRope, which does the first, kAttendBehindRope are the others.
enum AttendSteps {
  kAttendQueries = 1,
  kAttendPages = 2,
  kAttendMerge = 4,
  kAttendAllSteps = 7,
  kAttendEarly = 8,  // the kernel before on the stream is LaunchRope's
  kAttendBehindRope = kAttendEarly | kAttendPages | kAttendMerge
};

// Enqueues the kernels; does not wait. Same inputs and plan give the same bits. While the kernel
// enqueued before still runs, the first one here may read the plan and the codec set's records,
// but nothing else: that kernel may write q, pages and page tables.
absl::Status LaunchAttend(const AttendKernel& kernel, const AttendWorkspace& workspace,
                          const AttendInputs& inputs, cudaStream_t stream,
                          int steps = kAttendAllSteps);

}  // namespace fq
