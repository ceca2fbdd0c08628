#include "kernels/cuda/region_sums.h"

#include <algorithm>

#include "kernels/codec/word_sum.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp_sum.cuh"

namespace fq {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kLoadsAhead = 8;  // of 16 bytes a lane
constexpr uint64_t kPieceBytes = uint64_t{32} << 10;

struct SumParams {
  const SumPiece* pieces;
  int count;
  uint64_t* sums;
};

__global__ void __launch_bounds__(kThreads) SumRegions(SumParams p) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int index = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (index >= p.count) return;
  const SumPiece piece = p.pieces[index];
  const uint64_t sum = WarpSum<kLoadsAhead>(
      piece.data, static_cast<int>(piece.words), lane, [&piece](int at, uint64_t word) {
        return WordSumTerm(piece.first_word + static_cast<uint64_t>(at), word);
      });
  if (lane == 0) p.sums[index] = sum;
}

uint64_t PiecesOf(const DeviceRegion& region) {
  return (region.bytes + kPieceBytes - 1) / kPieceBytes;
}

}  // namespace

std::vector<SumPiece> SumPieces(absl::Span<const DeviceRegion> regions) {
  std::vector<SumPiece> pieces;
  for (const DeviceRegion& region : regions) {
    for (uint64_t at = 0; at < region.bytes; at += kPieceBytes) {
      pieces.push_back({region.data + at, at / sizeof(uint64_t),
                        std::min(kPieceBytes, region.bytes - at) / sizeof(uint64_t)});
    }
  }
  return pieces;
}

void AddPieceSums(absl::Span<const DeviceRegion> regions, const uint64_t* piece_sums,
                  absl::Span<uint64_t> sums) {
  for (size_t i = 0; i < regions.size(); ++i) {
    sums[i] = 0;
    for (uint64_t left = PiecesOf(regions[i]); left > 0; --left) sums[i] += *piece_sums++;
  }
}

cudaError_t SumPiecesOnDevice(const SumPiece* pieces, int count, uint64_t* sums,
                              cudaStream_t stream) {
  return Launch(SumRegions, {(count + kWarps - 1) / kWarps, kThreads}, stream,
                SumParams{pieces, count, sums});
}

}  // namespace fq
