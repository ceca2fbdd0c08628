// What planning and compiling need to know of the kv heads of a layer. Host code without CUDA.
#pragma once

#include <vector>

#include "kernels/codec_set.h"
#include "kernels/cuda/attend_plan.h"
#include "kernels/cuda/attend_source.h"
#include "kernels/cuda/tables_layout.h"
#include "kernels/params.h"

namespace fq {

// The layers and kv heads of the slabs that a page table points into.
struct AttendRange {
  int layer_begin = 0, head_begin = 0, head_end = 0;
  DType dtype = DType::kF16;  // of exact pages
};

// Both for one layer: `variant` has the profiles of its heads, `heads` names them by their codes.
struct AttendLayer {
  AttendVariant variant;
  std::vector<AttendHead> heads;  // [head_end - head_begin]
};

// `tables` are the records of the codec set on the device (TablesDevice::Record(0, 0)). With
// `refined` the kernel can also read pages with refinements.
AttendLayer DescribeLayer(const CodecSet& set, const AttendRange& range, int layer, bool refined,
                          const std::byte* tables);

}  // namespace fq
