#include "tests/testing/measured_codec_set.h"

#include <gtest/gtest.h>

#include "kernels/backend.h"
#include "kernels/page_bytes.h"
#include "nlohmann/json.hpp"
#include "tests/testing/codec_set_builder.h"
#include "tests/testing/page_buffer.h"
#include "tests/testing/reference_codec.h"

namespace fq {
namespace {

constexpr int kPages = 8;  // measured of each (layer, head)

// Sums of both profiles over pages of one (layer, head).
struct Sums {
  PageError compact, near_lossless;
};

void Add(const PageError& page, PageError& sums) {
  for (int side : {0, 1}) {
    sums.error[side] += page.error[side];
    sums.energy[side] += page.energy[side];
  }
}

void MeasurePage(const CodecSet& set, int layer, int head, uint64_t seed, Sums& sums) {
  const int d = set.head_size();
  PageBuffer k(DType::kF32, d, {}), v(DType::kF32, d, {});
  std::vector<double> rows;
  std::vector<float> row(static_cast<size_t>(d));
  for (int i = 0; i < 2 * kBlockTokens; ++i) {
    const bool is_key = i < kBlockTokens;
    MakeRow(is_key ? set.k(layer, head) : set.v(layer, head), d, seed + static_cast<uint64_t>(i),
            row.data());
    rows.insert(rows.end(), row.begin(), row.end());
    for (int c = 0; c < d; ++c) (is_key ? k : v).Set(i % kBlockTokens, c, row[c]);
  }
  const CodecProfile& profile = set.profile(layer, head);
  std::vector<std::byte> base(PageBytes({PageKind::kBase, DType::kF32, d, false}, &profile));
  std::vector<std::byte> fine(PageBytes({PageKind::kRefinement, DType::kF32, d, false}, &profile));
  EncodeTask task;
  task.source = {k.source(), v.source()};
  task.layer = layer;
  task.head = head;
  task.primary = base.data();
  task.refinement = fine.data();
  EXPECT_TRUE(ScalarBackend()->Encode({&set, d, DType::kF32}, {task}).ok());
  ReferencePage page;
  page.head_size = d;
  page.primary = base.data();
  page.codec_set = &set;
  page.layer = layer;
  page.head = head;
  Add(ReferenceError(page, rows, kBlockTokens), sums.compact);
  page.refinement = fine.data();
  Add(ReferenceError(page, rows, kBlockTokens), sums.near_lossless);
}

nlohmann::json RelativeOf(const PageError& sums) {
  return {sums.error[0] / sums.energy[0], sums.error[1] / sums.energy[1]};
}

}  // namespace

std::vector<std::byte> BuildMeasuredCodecSet(int layers, int kv_heads, int head_size,
                                             uint64_t seed) {
  const std::vector<std::byte> file = BuildCodecSet(layers, kv_heads, head_size, seed);
  const auto set = CodecSet::Parse(file).value();
  nlohmann::json compact = nlohmann::json::array(), near_lossless = compact;
  for (int layer = 0; layer < layers; ++layer) {
    compact.push_back(nlohmann::json::array());
    near_lossless.push_back(nlohmann::json::array());
    for (int head = 0; head < kv_heads; ++head) {
      Sums sums;
      for (int i = 0; i < kPages; ++i) {
        MeasurePage(*set, layer, head, (uint64_t{1} << 40) + static_cast<uint64_t>(1000 * i), sums);
      }
      compact.back().push_back(RelativeOf(sums.compact));
      near_lossless.back().push_back(RelativeOf(sums.near_lossless));
    }
  }
  const nlohmann::json patch = {
      {"expected_error", {{"compact", compact}, {"near-lossless", near_lossless}}}};
  return PatchCodecSet(file, patch.dump());
}

}  // namespace fq
