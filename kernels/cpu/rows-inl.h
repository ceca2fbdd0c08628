// Rows of a caller to a [channel][64 tokens] matrix and back, per SIMD target. Included by
// primitives_simd.cc only.
#if defined(FQ_KERNELS_CPU_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FQ_KERNELS_CPU_ROWS_INL_H_
#undef FQ_KERNELS_CPU_ROWS_INL_H_
#else
#define FQ_KERNELS_CPU_ROWS_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/codec/page_layout.h"
#include "kernels/codec/quantise.h"
#include "kernels/cpu/primitives.h"
#include "kernels/cpu/row_address.h"

#if HWY_NATIVE_FMA
HWY_BEFORE_NAMESPACE();
namespace fq {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using FloatVec = hn::Vec<FloatTag>;

// Rounds to nearest even; NaN becomes the quiet NaN 0x7FC0 with its sign.
HWY_INLINE void StoreBFloat16(FloatVec value, uint16_t* to) {
  const hn::RebindToUnsigned<FloatTag> du;
  const hn::RebindToSigned<FloatTag> di;
  const hn::Rebind<uint16_t, FloatTag> du16;
  const auto bits = hn::BitCast(du, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFF)));
  const auto quiet = hn::Or(hn::And(bits, hn::Set(du, 0x80000000u)), hn::Set(du, 0x7FC00000u));
  const auto is_nan = hn::RebindMask(du, hn::IsNaN(value));
  const auto chosen = hn::ShiftRight<16>(hn::IfThenElse(is_nan, quiet, rounded));
  hn::StoreU(hn::DemoteTo(du16, hn::BitCast(di, chosen)), du16, to);
}

HWY_INLINE void NarrowVec(DType dtype, FloatVec value, uint16_t* to) {
  const hn::Rebind<hwy::float16_t, FloatTag> dh;
  if (dtype == DType::kF16) {
    hn::StoreU(hn::DemoteTo(dh, value), dh, reinterpret_cast<hwy::float16_t*>(to));
  } else {
    StoreBFloat16(value, to);
  }
}

HWY_INLINE FloatVec WidenVec(DType dtype, const uint16_t* from) {
  const FloatTag d;
  const hn::Rebind<hwy::float16_t, FloatTag> dh;
  const hn::Rebind<hwy::bfloat16_t, FloatTag> db;
  if (dtype == DType::kF16) {
    return hn::PromoteTo(d, hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(from)));
  }
  return hn::PromoteTo(d, hn::LoadU(db, reinterpret_cast<const hwy::bfloat16_t*>(from)));
}

// Transposes 8 x 8 elements of 16 bits: to[i][to_offset + j] = from[j][offset + i].
HWY_INLINE void Transpose8x8(const uint16_t* const* from, int offset, uint16_t* const* to,
                             int to_offset) {
  const hn::FixedTag<uint16_t, 8> d16;
  const hn::FixedTag<uint32_t, 4> d32;
  const hn::FixedTag<uint64_t, 2> d64;
  hn::Vec<decltype(d32)> pairs[8];
  for (int i = 0; i < 4; ++i) {
    const auto a = hn::LoadU(d16, from[2 * i] + offset);
    const auto b = hn::LoadU(d16, from[2 * i + 1] + offset);
    pairs[2 * i] = hn::BitCast(d32, hn::InterleaveLower(d16, a, b));
    pairs[2 * i + 1] = hn::BitCast(d32, hn::InterleaveUpper(d16, a, b));
  }
  for (int half = 0; half < 2; ++half) {  // channels 0..3, then 4..7
    const auto a = pairs[half], b = pairs[2 + half], c = pairs[4 + half], e = pairs[6 + half];
    const auto ab_lo = hn::BitCast(d64, hn::InterleaveLower(d32, a, b));
    const auto ab_hi = hn::BitCast(d64, hn::InterleaveUpper(d32, a, b));
    const auto ce_lo = hn::BitCast(d64, hn::InterleaveLower(d32, c, e));
    const auto ce_hi = hn::BitCast(d64, hn::InterleaveUpper(d32, c, e));
    uint16_t* const* out = to + 4 * half;
    hn::StoreU(hn::BitCast(d16, hn::InterleaveLower(d64, ab_lo, ce_lo)), d16, out[0] + to_offset);
    hn::StoreU(hn::BitCast(d16, hn::InterleaveUpper(d64, ab_lo, ce_lo)), d16, out[1] + to_offset);
    hn::StoreU(hn::BitCast(d16, hn::InterleaveLower(d64, ab_hi, ce_hi)), d16, out[2] + to_offset);
    hn::StoreU(hn::BitCast(d16, hn::InterleaveUpper(d64, ab_hi, ce_hi)), d16, out[3] + to_offset);
  }
}

// The same for 4 x 4 floats.
HWY_INLINE void Transpose4x4(const float* const* from, int offset, float* const* to,
                             int to_offset) {
  const hn::FixedTag<float, 4> d32;
  const hn::FixedTag<double, 2> d64;
  const auto r0 = hn::LoadU(d32, from[0] + offset), r1 = hn::LoadU(d32, from[1] + offset);
  const auto r2 = hn::LoadU(d32, from[2] + offset), r3 = hn::LoadU(d32, from[3] + offset);
  const auto lo01 = hn::BitCast(d64, hn::InterleaveLower(d32, r0, r1));
  const auto hi01 = hn::BitCast(d64, hn::InterleaveUpper(d32, r0, r1));
  const auto lo23 = hn::BitCast(d64, hn::InterleaveLower(d32, r2, r3));
  const auto hi23 = hn::BitCast(d64, hn::InterleaveUpper(d32, r2, r3));
  hn::StoreU(hn::BitCast(d32, hn::InterleaveLower(d64, lo01, lo23)), d32, to[0] + to_offset);
  hn::StoreU(hn::BitCast(d32, hn::InterleaveUpper(d64, lo01, lo23)), d32, to[1] + to_offset);
  hn::StoreU(hn::BitCast(d32, hn::InterleaveLower(d64, hi01, hi23)), d32, to[2] + to_offset);
  hn::StoreU(hn::BitCast(d32, hn::InterleaveUpper(d64, hi01, hi23)), d32, to[3] + to_offset);
}

HWY_INLINE void TransposeTile(const uint16_t* const* from, int offset, uint16_t* const* to,
                              int to_offset) {
  Transpose8x8(from, offset, to, to_offset);
}
HWY_INLINE void TransposeTile(const float* const* from, int offset, float* const* to,
                              int to_offset) {
  Transpose4x4(from, offset, to, to_offset);
}

// Elements along a side of the tile that TransposeTile moves.
template <typename Element>
constexpr int kTile = sizeof(Element) == 2 ? 8 : 4;

// matrix[c][t] = row t, element c, for 64 rows.
template <typename Element>
void RowsToMatrix(const Element* const* rows, int head_size, Element* matrix) {
  constexpr int kSize = kTile<Element>;
  for (int t = 0; t < kPageTokens; t += kSize) {
    for (int c = 0; c < head_size; c += kSize) {
      Element* to[kSize];
      for (int i = 0; i < kSize; ++i) to[i] = matrix + (c + i) * kPageTokens;
      TransposeTile(rows + t, c, to, t);
    }
  }
}

template <typename Element>
void MatrixToRows(const Element* matrix, int head_size, Element* const* rows) {
  constexpr int kSize = kTile<Element>;
  for (int t = 0; t < kPageTokens; t += kSize) {
    for (int c = 0; c < head_size; c += kSize) {
      const Element* from[kSize];
      for (int i = 0; i < kSize; ++i) from[i] = matrix + (c + i) * kPageTokens;
      TransposeTile(from, t, rows + t, c);
    }
  }
}

// Pointers to the 64 rows; rows outside the range point at `other` [head_size].
template <typename Element, typename Byte>
void RowPointers(const Rows<Byte>& rows, const RowRange& range, Element* other,
                 Element** pointers) {
  for (int t = 0; t < kPageTokens; ++t) {
    const bool inside = t >= range.token_begin && t < range.token_end;
    pointers[t] = inside ? reinterpret_cast<Element*>(RowAddress(rows, t, sizeof(Element))) : other;
  }
}

void WidenMatrix(DType dtype, const uint16_t* from, int count, float* to) {
  const FloatTag d;
  for (int i = 0; i < count; i += static_cast<int>(hn::Lanes(d))) {
    hn::Store(WidenVec(dtype, from + i), d, to + i);
  }
}

void NarrowMatrix(DType dtype, const float* from, int count, uint16_t* to) {
  const FloatTag d;
  for (int i = 0; i < count; i += static_cast<int>(hn::Lanes(d))) {
    NarrowVec(dtype, hn::Load(d, from + i), to + i);
  }
}

// Dense rows: channel_stride is 1.
void LoadDenseRows(const SourceRows& rows, const RowRange& range, float* x) {
  const int count = range.head_size * kPageTokens;
  if (range.dtype == DType::kF32) {
    static constexpr float kZeros[kMaxHeadSize] = {};
    const float* pointers[kPageTokens];
    RowPointers(rows, range, kZeros, pointers);
    RowsToMatrix(pointers, range.head_size, x);
    return;
  }
  static constexpr uint16_t kZeros[kMaxHeadSize] = {};
  alignas(64) uint16_t matrix[kMaxHeadSize * kPageTokens];
  const uint16_t* pointers[kPageTokens];
  RowPointers(rows, range, kZeros, pointers);
  RowsToMatrix(pointers, range.head_size, matrix);
  WidenMatrix(range.dtype, matrix, count, x);
}

void StoreDenseRows(const float* x, const RowRange& range, const TargetRows& rows) {
  if (range.dtype == DType::kF32) {
    float unwanted[kMaxHeadSize];
    float* pointers[kPageTokens];
    RowPointers(rows, range, unwanted, pointers);
    MatrixToRows(x, range.head_size, pointers);
    return;
  }
  alignas(64) uint16_t matrix[kMaxHeadSize * kPageTokens];
  NarrowMatrix(range.dtype, x, range.head_size * kPageTokens, matrix);
  uint16_t unwanted[kMaxHeadSize];
  uint16_t* pointers[kPageTokens];
  RowPointers(rows, range, unwanted, pointers);
  MatrixToRows(matrix, range.head_size, pointers);
}

// Dense columns: token_stride is 1, so a channel is contiguous within a chunk.
void LoadDenseColumns(const SourceRows& rows, const RowRange& range, float* x) {
  const int bytes = ElementBytes(range.dtype);
  alignas(64) std::byte column[kPageTokens * sizeof(float)] = {};
  for (int c = 0; c < range.head_size; ++c) {
    for (int t = range.token_begin; t < range.token_end;) {
      const int end = ChunkEnd(rows, t, range.token_end);
      const std::byte* from = RowAddress(rows, t, bytes) + c * rows.channel_stride * bytes;
      std::memcpy(column + t * bytes, from, static_cast<size_t>(end - t) * bytes);
      t = end;
    }
    float* to = x + c * kPageTokens;
    if (range.dtype == DType::kF32) {
      std::memcpy(to, column, sizeof(column));
    } else {
      WidenMatrix(range.dtype, reinterpret_cast<const uint16_t*>(column), kPageTokens, to);
    }
  }
}

void StoreDenseColumns(const float* x, const RowRange& range, const TargetRows& rows) {
  const int bytes = ElementBytes(range.dtype);
  alignas(64) std::byte column[kPageTokens * sizeof(float)];
  for (int c = 0; c < range.head_size; ++c) {
    const float* from = x + c * kPageTokens;
    if (range.dtype == DType::kF32) {
      std::memcpy(column, from, sizeof(column));
    } else {
      NarrowMatrix(range.dtype, from, kPageTokens, reinterpret_cast<uint16_t*>(column));
    }
    for (int t = range.token_begin; t < range.token_end;) {
      const int end = ChunkEnd(rows, t, range.token_end);
      std::byte* to = RowAddress(rows, t, bytes) + c * rows.channel_stride * bytes;
      std::memcpy(to, column + t * bytes, static_cast<size_t>(end - t) * bytes);
      t = end;
    }
  }
}

void LoadRows(const SourceRows& rows, const RowRange& range, float* x) {
  if (rows.channel_stride == 1) {
    LoadDenseRows(rows, range, x);
  } else if (rows.token_stride == 1) {
    LoadDenseColumns(rows, range, x);
  } else {
    ScalarPrimitives().load_rows(rows, range, x);
  }
}

void StoreRows(const float* x, const RowRange& range, const TargetRows& rows) {
  if (rows.channel_stride == 1) {
    StoreDenseRows(x, range, rows);
  } else if (rows.token_stride == 1) {
    StoreDenseColumns(x, range, rows);
  } else {
    ScalarPrimitives().store_rows(x, range, rows);
  }
}

void Centre(const float* mu, const RowRange& range, float* x) {
  const FloatTag d;
  const auto limit = hn::Set(d, kInputLimit), low = hn::Set(d, -kInputLimit);
  const auto begin = hn::Set(d, static_cast<float>(range.token_begin));
  const auto end = hn::Set(d, static_cast<float>(range.token_end));
  for (int c = 0; c < range.head_size; ++c) {
    const auto mean = hn::Set(d, mu[c]);
    for (int t = 0; t < kPageTokens; t += static_cast<int>(hn::Lanes(d))) {
      float* at = x + c * kPageTokens + t;
      const auto value = hn::Load(d, at);
      const auto token = hn::Iota(d, static_cast<float>(t));
      const auto inside = hn::And(hn::Ge(token, begin), hn::Lt(token, end));
      const auto kept = hn::And(inside, hn::Eq(value, value));
      const auto centred = hn::Sub(hn::Min(hn::Max(value, low), limit), mean);
      hn::Store(hn::IfThenElseZero(kept, centred), d, at);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fq
HWY_AFTER_NAMESPACE();
#endif  // HWY_NATIVE_FMA

#endif  // FQ_KERNELS_CPU_ROWS_INL_H_
