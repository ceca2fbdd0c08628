#include "kernels/page_error.h"

#include <algorithm>

#include "kernels/cpu/page_coder.h"

namespace fq {
namespace {

constexpr int kMatrix = kMaxHeadSize * kPageTokens;
constexpr GroupMask kAllGroups = ~GroupMask{0};

// Adds one side's sums over the rows of `range`; u and v are [head_size][64].
void AddSums(const HeadCodec& codec, const RowRange& range, const float* u, const float* v,
             double* error, double* energy) {
  for (int c = 0; c < range.head_size; ++c) {
    double row_error = 0, row_energy = 0;
    for (int t = range.token_begin; t < range.token_end; ++t) {
      const double was = u[c * kPageTokens + t], off = was - v[c * kPageTokens + t];
      row_error += off * off;
      row_energy += was * was;
    }
    *error += codec.weight[c] * row_error;
    *energy += codec.weight[c] * row_energy;
  }
}

}  // namespace

PageError MeasureError(const Backend::Context& context, const ErrorTask& task) {
  const Primitives& primitives = SimdPrimitives();
  const int begin = task.sink ? std::min(task.tokens, kSinkTokens) : 0;
  const RowRange range{context.dtype, context.head_size, begin, task.tokens};
  PageError sums;
  for (Side side : {Side::kKey, Side::kValue}) {
    const int i = side == Side::kKey ? 0 : 1;
    CodedSide coded = CodedSide::Of(*context.codec_set, task.layer, task.head, side);
    coded.base = task.primary;
    coded.refinement = task.refinement;
    alignas(64) float x[kMatrix];
    alignas(64) float u[kMatrix];
    primitives.load_rows(side == Side::kKey ? task.source.k : task.source.v, range, x);
    primitives.centre(coded.codec->mu, range, x);
    primitives.transform(coded.codec->a, range.head_size, kAllGroups, x, u);
    DecodeCoded(primitives, coded, x);
    AddSums(*coded.codec, range, u, x, &sums.error[i], &sums.energy[i]);
  }
  return sums;
}

}  // namespace fq
