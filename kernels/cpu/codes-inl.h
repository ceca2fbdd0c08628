// Rounding of groups of values to codes and the arithmetic behind look-ups, per SIMD target.
// Included by primitives_simd.cc only.
#if defined(FQ_KERNELS_CPU_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FQ_KERNELS_CPU_CODES_INL_H_
#undef FQ_KERNELS_CPU_CODES_INL_H_
#else
#define FQ_KERNELS_CPU_CODES_INL_H_
#endif

#include <cstdint>
#include <limits>

#include "hwy/highway.h"
#include "kernels/codec/nearest.h"
#include "kernels/codec/page_layout.h"
#include "kernels/codec/quantise.h"
#include "kernels/cpu/rows-inl.h"

#if HWY_NATIVE_FMA
HWY_BEFORE_NAMESPACE();
namespace fq {
namespace HWY_NAMESPACE {

// Stores one code byte per lane; the lanes are whole numbers 0..255.
HWY_INLINE void StoreCodes(FloatVec codes, uint8_t* to) {
  const hn::RebindToSigned<FloatTag> di;
  const hn::Rebind<uint8_t, FloatTag> du8;
  hn::StoreU(hn::DemoteTo(du8, hn::ConvertTo(di, codes)), du8, to);
}

void PrepareSearch(int values, SearchTable* table) {
  const FloatTag d;
  for (int entry = 0; entry < kTableEntries; entry += static_cast<int>(hn::Lanes(d))) {
    auto norm = hn::Zero(d);
    for (int i = 0; i < values; ++i) {
      const auto value = hn::Load(d, table->value[i] + entry);
      norm = hn::MulAdd(value, value, norm);
    }
    hn::Store(hn::Mul(hn::Set(d, -0.5f), norm), d, table->start + entry);
  }
}

// NearestEntry for kVectors vectors of points at once: one broadcast of an entry serves them all.
template <int kValues, int kVectors>
HWY_INLINE void FindNearestBlock(const SearchTable& table, const float* in, int count,
                                 uint8_t* codes) {
  const FloatTag d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  FloatVec x[kValues][kVectors], best_score[kVectors], best[kVectors];
  HWY_UNROLL(8)
  for (int v = 0; v < kVectors; ++v) {
    HWY_UNROLL(8)
    for (int i = 0; i < kValues; ++i) x[i][v] = hn::Load(d, in + i * count + v * lanes);
    best_score[v] = hn::Set(d, -std::numeric_limits<float>::infinity());
    best[v] = hn::Zero(d);
  }
  auto index = hn::Zero(d);
  const auto one = hn::Set(d, 1.0f);
  for (int entry = 0; entry < kTableEntries; ++entry) {
    FloatVec score[kVectors];
    HWY_UNROLL(8)
    for (int v = 0; v < kVectors; ++v) score[v] = hn::Set(d, table.start[entry]);
    HWY_UNROLL(8)
    for (int i = 0; i < kValues; ++i) {
      const auto value = hn::Set(d, table.value[i][entry]);
      HWY_UNROLL(8)
      for (int v = 0; v < kVectors; ++v) score[v] = hn::MulAdd(x[i][v], value, score[v]);
    }
    HWY_UNROLL(8)
    for (int v = 0; v < kVectors; ++v) {
      const auto better = hn::Gt(score[v], best_score[v]);
      best_score[v] = hn::IfThenElse(better, score[v], best_score[v]);
      best[v] = hn::IfThenElse(better, index, best[v]);
    }
    index = hn::Add(index, one);
  }
  HWY_UNROLL(8)
  for (int v = 0; v < kVectors; ++v) StoreCodes(best[v], codes + v * lanes);
}

template <int kValues, int kVectors>
void FindNearestOf(const SearchTable& table, int count, const float* in, uint8_t* codes) {
  const int step = kVectors * static_cast<int>(hn::Lanes(FloatTag()));
  for (int b = 0; b < count; b += step) {
    FindNearestBlock<kValues, kVectors>(table, in + b, count, codes + b);
  }
}

void FindNearest(const SearchTable& table, int values, int count, const float* in, uint8_t* codes) {
  constexpr bool kManyRegisters = HWY_MAX_BYTES >= 64;
  if (values == 2) {
    FindNearestOf<2, kManyRegisters ? 4 : 2>(table, count, in, codes);
  } else if (values == 4) {
    FindNearestOf<4, kManyRegisters ? 4 : 2>(table, count, in, codes);
  } else {
    FindNearestOf<8, kManyRegisters ? 2 : 1>(table, count, in, codes);
  }
}

void QuantiseClass8(const float* in, uint8_t* codes) {
  const FloatTag d;
  const hn::RebindToSigned<FloatTag> di;
  const hn::Rebind<uint8_t, FloatTag> du8;
  const auto scale = hn::Set(d, kClass8InverseStep), limit = hn::Set(d, 127.0f);
  const auto offset = hn::Set(di, 128);
  for (int i = 0; i < kGroupValues; i += static_cast<int>(hn::Lanes(d))) {
    const auto steps = hn::Mul(hn::Load(d, in + i), scale);
    const auto clamped = hn::Min(hn::Max(steps, hn::Neg(limit)), limit);
    const auto number = hn::IfThenElseZero(hn::Eq(steps, steps), clamped);
    hn::StoreU(hn::DemoteTo(du8, hn::Add(hn::NearestInt(number), offset)), du8, codes + i);
  }
}

void ScaleResidual(const float* u, const float* base, float sd, float* z) {
  const FloatTag d;
  const auto inverse = hn::Set(d, InverseDeviation(sd));
  for (int t = 0; t < kPageTokens; t += static_cast<int>(hn::Lanes(d))) {
    const auto residual = hn::Sub(hn::Load(d, u + t), hn::Load(d, base + t));
    hn::Store(hn::Mul(residual, inverse), d, z + t);
  }
}

void WidenHalves(const uint16_t* halves, int count, float* values) {
  WidenMatrix(DType::kF16, halves, count, values);
}

void WidenPairs(const uint32_t* pairs, float* even, float* odd) {
  const FloatTag d;
  const hn::RebindToUnsigned<FloatTag> du;
  const hn::Rebind<uint16_t, FloatTag> du16;
  const hn::Rebind<hwy::float16_t, FloatTag> dh;
  for (int i = 0; i < kPageTokens; i += static_cast<int>(hn::Lanes(d))) {
    const auto pair = hn::Load(du, pairs + i);
    const auto low = hn::TruncateTo(du16, pair);
    const auto high = hn::TruncateTo(du16, hn::ShiftRight<16>(pair));
    hn::Store(hn::PromoteTo(d, hn::BitCast(dh, low)), d, even + i);
    hn::Store(hn::PromoteTo(d, hn::BitCast(dh, high)), d, odd + i);
  }
}

void Refine(float sd, const float* refinement, float* v) {
  const FloatTag d;
  const auto scale = hn::Set(d, sd);
  for (int t = 0; t < kPageTokens; t += static_cast<int>(hn::Lanes(d))) {
    const auto sum = hn::MulAdd(scale, hn::Load(d, refinement + t), hn::Load(d, v + t));
    hn::Store(sum, d, v + t);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fq
HWY_AFTER_NAMESPACE();
#endif  // HWY_NATIVE_FMA

#endif  // FQ_KERNELS_CPU_CODES_INL_H_
