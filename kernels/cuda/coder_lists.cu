#include "kernels/cuda/coder_lists.h"

#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/nearest_lists.cuh"

namespace fq {
namespace {

constexpr int kThreads = kTableEntries;  // cells of a block; an entry a thread
constexpr int BlocksFor(int bits) { return (GridOf(bits).Cells() + kThreads - 1) / kThreads; }
constexpr int kClass4Blocks = BlocksFor(4);
constexpr int kBlocks = kClass4Blocks + BlocksFor(2);  // of a part of a coder

struct ListParams {
  const std::byte* coders;
  std::byte* lists;  // [coder][2][ListBytes()]
  int head_size;
};

__global__ void __launch_bounds__(kThreads) MakeCoderLists(ListParams p) {
  FQ_DYNAMIC_SHARED(memory);
  auto* values = reinterpret_cast<float*>(memory);
  const int table = static_cast<int>(blockIdx.x) / kBlocks, block = blockIdx.x % kBlocks;
  const CoderLayout layout{p.head_size};
  const auto* words = reinterpret_cast<const uint32_t*>(p.coders + table / 2 * layout.Bytes() +
                                                        layout.Tables(table % 2));
  std::byte* lists = p.lists + static_cast<size_t>(table) * ListBytes();
  if (block < kClass4Blocks) {
    MakeLists<4>(words, values, block * kThreads, kThreads, lists + ListOffset(0, 4));
  } else {
    MakeLists<2>(words, values, (block - kClass4Blocks) * kThreads, kThreads,
                 lists + ListOffset(0, 2));
  }
}

}  // namespace

absl::Status MakeCandidateLists(const std::byte* coders, int count, int head_size, std::byte* lists,
                                cudaStream_t stream) {
  const LaunchShape shape{2 * count * kBlocks, kThreads, 4 * kTableEntries * sizeof(float)};
  return CudaStatus(Launch(MakeCoderLists, shape, stream, {coders, lists, head_size}),
                    "MakeCoderLists");
}

}  // namespace fq
