// Promise P7 at run time: measures a sample of what the node encodes against what calibration
// predicted, and counts blocks beyond the calibrated length. Writes metrics and warnings. Thread-
// safe.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/slab.h"
#include "server/clock.h"
#include "server/log.h"
#include "server/metrics.h"
#include "server/namespaces.h"

namespace fq {

struct QualityOptions {
  uint32_t sample_every = 64;  // measures about one block in so many; 0: none
  double drift_ratio = 1.5;    // measured over predicted error from which traffic does not fit
};

class QualityWatch {
 public:
  enum class Direction { kStore, kLoad };

  // Keeps the pointers; `log` may be null.
  QualityWatch(QualityOptions options, Metrics* metrics, const Log* log, Clock clock)
      : options_(options), metrics_(metrics), log_(log), clock_(std::move(clock)) {}

  // Whether the block of that key is measured: its first 8 bytes, little-endian, are a multiple of
  // `sample_every`. Keys are hashes, so this takes one in so many, the same ones on every node.
  bool Samples(const BlockKey& key) const;

  // The pages of a block to measure, when it was just encoded for `profile`: up to four, if it is
  // its turn and the codec set predicts an error.
  std::vector<int> PagesToMeasure(const SlabSpace& space, Profile profile,
                                  const BlockKey& key) const;

  // Measures them; `pages` are the rows they were encoded from, in that order. Of the extents only
  // their bytes are read.
  void MeasureEncoded(const SlabSpace& space, Profile profile, const EncodedBlock& block,
                      absl::Span<const int> indices, absl::Span<const SourcePage> pages);

  // Counts a block of a calibrated profile that begins beyond the length of calibration.
  void CountLength(const SlabSpace& space, Profile profile, uint32_t block_index,
                   Direction direction);

 private:
  void Take(const SlabSpace& space, Profile profile, double ratio);
  void WarnLength(const SlabSpace& space, uint32_t block_index, QualityWarning warning);

  const QualityOptions options_;
  Metrics* const metrics_;
  const Log* const log_;
  const Clock clock_;
};

}  // namespace fq
