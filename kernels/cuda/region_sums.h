// Word sums of memory on the device (kernels/codec/word_sum.h).
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/device.h"

namespace fq {

// A part of a region that one warp adds up.
struct SumPiece {
  const std::byte* data;
  uint64_t first_word;  // of the region
  uint64_t words;       // of 8 bytes; even
};

// The regions cut into pieces, in order.
std::vector<SumPiece> SumPieces(absl::Span<const DeviceRegion> regions);

// Adds the pieces' sums up to those of the regions that they were cut from.
void AddPieceSums(absl::Span<const DeviceRegion> regions, const uint64_t* piece_sums,
                  absl::Span<uint64_t> sums);

// Queues: sums[i] is that of pieces[i]. `pieces` in device memory, `sums` where the device can
// write.
cudaError_t SumPiecesOnDevice(const SumPiece* pieces, int count, uint64_t* sums,
                              cudaStream_t stream);

}  // namespace fq
