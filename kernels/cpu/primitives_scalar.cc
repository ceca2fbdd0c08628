#include <algorithm>
#include <cmath>

#include "kernels/codec/float_convert.h"
#include "kernels/codec/quantise.h"
#include "kernels/cpu/element.h"
#include "kernels/cpu/primitives.h"
#include "kernels/cpu/row_address.h"

namespace fq {
namespace {

bool InMask(GroupMask groups, int channel) { return (groups >> (channel / kGroupChannels)) & 1u; }

void LoadRows(const SourceRows& rows, const RowRange& range, float* x) {
  std::fill_n(x, range.head_size * kPageTokens, 0.0f);
  const int bytes = ElementBytes(range.dtype);
  for (int t = range.token_begin; t < range.token_end; ++t) {
    const std::byte* row = RowAddress(rows, t, bytes);
    for (int c = 0; c < range.head_size; ++c) {
      x[c * kPageTokens + t] = LoadElement(range.dtype, row + c * rows.channel_stride * bytes);
    }
  }
}

void StoreRows(const float* x, const RowRange& range, const TargetRows& rows) {
  const int bytes = ElementBytes(range.dtype);
  for (int t = range.token_begin; t < range.token_end; ++t) {
    std::byte* row = RowAddress(rows, t, bytes);
    for (int c = 0; c < range.head_size; ++c) {
      StoreElement(range.dtype, x[c * kPageTokens + t], row + c * rows.channel_stride * bytes);
    }
  }
}

void Centre(const float* mu, const RowRange& range, float* x) {
  for (int c = 0; c < range.head_size; ++c) {
    for (int t = 0; t < kPageTokens; ++t) {
      const bool inside = t >= range.token_begin && t < range.token_end;
      float& value = x[c * kPageTokens + t];
      value = inside ? Centred(value, mu[c]) : 0.0f;
    }
  }
}

void Transform(const float* a, int head_size, GroupMask groups, const float* x, float* u) {
  for (int i = 0; i < head_size; ++i) {
    if (!InMask(groups, i)) continue;
    for (int t = 0; t < kPageTokens; ++t) {
      float sum = 0.0f;
      for (int k = 0; k < head_size; ++k) {
        sum = std::fmaf(a[i * head_size + k], x[k * kPageTokens + t], sum);
      }
      u[i * kPageTokens + t] = sum;
    }
  }
}

void PrepareSearch(int values, SearchTable* table) {
  for (int i = 0; i < kTableEntries; ++i) table->start[i] = NearestStart(*table, values, i);
}

void FindNearest(const SearchTable& table, int values, int count, const float* in, uint8_t* codes) {
  for (int b = 0; b < count; ++b) codes[b] = NearestEntry(table, values, in + b, count);
}

void QuantiseClass8(const float* in, uint8_t* codes) {
  for (int i = 0; i < kGroupValues; ++i) codes[i] = Class8Code(in[i]);
}

void ScaleResidual(const float* u, const float* base, float sd, float* z) {
  const float inverse = InverseDeviation(sd);
  for (int t = 0; t < kPageTokens; ++t) z[t] = ScaledResidual(u[t], base[t], inverse);
}

void WidenHalves(const uint16_t* halves, int count, float* values) {
  for (int i = 0; i < count; ++i) values[i] = HalfToFloat(halves[i]);
}

void WidenPairs(const uint32_t* pairs, float* even, float* odd) {
  for (int i = 0; i < kPageTokens; ++i) {
    even[i] = HalfToFloat(static_cast<uint16_t>(pairs[i] & 0xFFFFu));
    odd[i] = HalfToFloat(static_cast<uint16_t>(pairs[i] >> 16));
  }
}

void Refine(float sd, const float* refinement, float* v) {
  for (int t = 0; t < kPageTokens; ++t) v[t] = Refined(v[t], refinement[t], sd);
}

void InverseRows(const float* a_inv, const float* mu, GroupMask groups, const float* v,
                 const RowRange& range, const TargetRows& rows) {
  const int bytes = ElementBytes(range.dtype), d = range.head_size;
  for (int t = range.token_begin; t < range.token_end; ++t) {
    std::byte* row = RowAddress(rows, t, bytes);
    for (int i = 0; i < d; ++i) {
      float sum = mu[i];
      for (int c = 0; c < d; ++c) {
        if (InMask(groups, c)) sum = std::fmaf(a_inv[i * d + c], v[c * kPageTokens + t], sum);
      }
      StoreElement(range.dtype, sum, row + i * rows.channel_stride * bytes);
    }
  }
}

void Score(const float* q, int head_size, const float* v, float* scores) {
  std::fill_n(scores, kPageTokens, 0.0f);
  for (int c = 0; c < head_size; ++c) {
    for (int t = 0; t < kPageTokens; ++t) {
      scores[t] = std::fmaf(q[c], v[c * kPageTokens + t], scores[t]);
    }
  }
}

void Accumulate(const float* weights, int head_size, const float* v, float decay, float* out) {
  for (int c = 0; c < head_size; ++c) {
    float sum = out[c] * decay;
    for (int t = 0; t < kPageTokens; ++t) sum = std::fmaf(weights[t], v[c * kPageTokens + t], sum);
    out[c] = sum;
  }
}

}  // namespace

const Primitives& ScalarPrimitives() {
  static constexpr Primitives kScalar = {"scalar",      LoadRows,      StoreRows,   Centre,
                                         Transform,     PrepareSearch, FindNearest, QuantiseClass8,
                                         ScaleResidual, WidenHalves,   WidenPairs,  Refine,
                                         InverseRows,   Score,         Accumulate};
  return kScalar;
}

}  // namespace fq
