#include "server/quality_watch.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/profile_name.h"

namespace fq {
namespace {

constexpr int kMostPages = 4;     // of a block, to measure
constexpr int kPagesPerPage = 8;  // of a block for each of them: bounds the cost of small slabs

uint64_t WordOf(const BlockKey& key, size_t word) {
  uint64_t value = 0;
  for (size_t i = 8; i-- > 0;) value = value << 8 | key[8 * word + i];
  return value;
}

// Pages of the block to measure: spread over the layers, others for every key.
std::vector<int> PagesOf(const BlockKey& key, int pages) {
  const int count = std::clamp(pages / kPagesPerPage, 1, kMostPages);
  const int first = static_cast<int>(WordOf(key, 1) % static_cast<uint64_t>(pages));
  std::vector<int> chosen(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) {
    chosen[static_cast<size_t>(i)] = (first + i * pages / count) % pages;
  }
  return chosen;
}

const std::vector<double>& ExpectedOf(const CodecSet& set, Profile profile) {
  return profile == Profile::kCompact ? set.expected_error().compact
                                      : set.expected_error().near_lossless;
}

// Sums of what was measured and what was to be expected of rows with that energy.
struct Sums {
  double measured = 0, expected = 0;

  void Add(const PageError& page, const double* relative) {
    for (int side : {0, 1}) {
      measured += page.error[side];
      expected += relative[side] * page.energy[side];
    }
  }
};

}  // namespace

bool QualityWatch::Samples(const BlockKey& key) const {
  return options_.sample_every != 0 && WordOf(key, 0) % options_.sample_every == 0;
}

std::vector<int> QualityWatch::PagesToMeasure(const SlabSpace& space, Profile profile,
                                              const BlockKey& key) const {
  if (!IsCalibrated(profile) || space.codec_set == nullptr || !Samples(key)) return {};
  if (ExpectedOf(*space.codec_set, profile).empty()) return {};
  return PagesOf(key, space.shape().pages());
}

void QualityWatch::MeasureEncoded(const SlabSpace& space, Profile profile,
                                  const EncodedBlock& block, absl::Span<const int> indices,
                                  absl::Span<const SourcePage> pages) {
  const auto refinement =
      profile == Profile::kNearLossless ? block.refinement : absl::Span<const std::byte>();
  const SlabShape& shape = space.shape();
  Sums sums;
  for (size_t i = 0; i < indices.size(); ++i) {
    const int page = indices[i];
    const auto error =
        space.codec->MeasureError(block.id, page, pages[i], block.primary, refinement);
    if (!error.ok()) return;  // not possible for what was just encoded
    const int head = shape.LayerOf(page) * space.codec_set->kv_heads() + shape.HeadOf(page);
    sums.Add(*error, &ExpectedOf(*space.codec_set, profile)[2 * static_cast<size_t>(head)]);
  }
  if (sums.measured == 0 && sums.expected == 0) return;  // all rows are the mean: says nothing
  Take(space, profile, sums.measured / sums.expected);
}

void QualityWatch::Take(const SlabSpace& space, Profile profile, double ratio) {
  metrics_->Add(Metric::kQualitySamples, {ProfileName(profile)}, 1);
  const auto [changed, now] = space.quality->Add(profile, ratio, options_.drift_ratio);
  if (!changed || log_ == nullptr) return;
  if (now.drift && !space.quality->MayWarn(QualityWarning::kDrift, clock_())) return;
  log_->Write(now.drift ? LogLevel::kWarning : LogLevel::kInfo,
              now.drift ? "quality_drift" : "quality_as_calibrated",
              {{"namespace", space.namespace_name},
               {"profile", ProfileName(profile)},
               {"error_ratio", absl::StrCat(now.error_ratio)},
               {"quality_drift_ratio", absl::StrCat(options_.drift_ratio)}});
}

void QualityWatch::CountLength(const SlabSpace& space, Profile profile, uint32_t block_index,
                               Direction direction) {
  if (!IsCalibrated(profile) || space.codec_set == nullptr) return;
  const uint64_t begin = uint64_t{block_index} * kBlockTokens;
  const uint64_t calibrated = static_cast<uint64_t>(space.codec_set->calibrated_tokens());
  if (begin < calibrated) return;
  const bool twice = begin >= 2 * calibrated;
  metrics_->Add(Metric::kBlocksBeyond,
                {direction == Direction::kStore ? "store" : "load", twice ? "twice" : "calibrated"},
                1);
  WarnLength(space, block_index,
             twice ? QualityWarning::kBeyondTwice : QualityWarning::kBeyondCalibrated);
}

void QualityWatch::WarnLength(const SlabSpace& space, uint32_t block_index,
                              QualityWarning warning) {
  if (log_ == nullptr || !space.quality->MayWarn(warning, clock_())) return;
  log_->Write(LogLevel::kWarning,
              warning == QualityWarning::kBeyondTwice ? "beyond_twice_calibrated_length"
                                                      : "beyond_calibrated_length",
              {{"namespace", space.namespace_name},
               {"tokens", absl::StrCat((uint64_t{block_index} + 1) * kBlockTokens)},
               {"calibrated_tokens", absl::StrCat(space.codec_set->calibrated_tokens())}});
}

}  // namespace fq
