#include "kernels/cpu/exact_rows.h"

#include <cstring>

#include "kernels/cpu/row_address.h"

namespace fq {
namespace {

// Copies `count` elements of constant size, so that each copy becomes one load and one store.
template <int kBytes>
void CopyStrided(const std::byte* from, int64_t from_stride, std::byte* to, int64_t to_stride,
                 int count) {
  for (int i = 0; i < count; ++i) {
    std::memcpy(to + i * to_stride * kBytes, from + i * from_stride * kBytes, kBytes);
  }
}

struct Strided {
  int64_t from_stride, to_stride;  // elements
};

void CopyRow(const ExactShape& shape, const std::byte* from, const Strided& strides,
             std::byte* to) {
  if (strides.from_stride == 1 && strides.to_stride == 1) {
    std::memcpy(to, from, static_cast<size_t>(shape.head_size) * ElementBytes(shape.dtype));
  } else if (ElementBytes(shape.dtype) == 4) {
    CopyStrided<4>(from, strides.from_stride, to, strides.to_stride, shape.head_size);
  } else {
    CopyStrided<2>(from, strides.from_stride, to, strides.to_stride, shape.head_size);
  }
}

}  // namespace

void EncodeExactRows(Side side, const ExactShape& shape, const SourceRows& rows, std::byte* page) {
  const int bytes = ElementBytes(shape.dtype);
  for (int t = 0; t < shape.tokens; ++t) {
    CopyRow(shape, RowAddress(rows, t, bytes), {rows.channel_stride, 1},
            page + ExactRowOffset(side, t, shape.head_size, bytes));
  }
  const size_t row_bytes = static_cast<size_t>(shape.head_size) * bytes;
  std::memset(page + ExactRowOffset(side, shape.tokens, shape.head_size, bytes), 0,
              row_bytes * (kPageTokens - shape.tokens));
}

void DecodeExactRows(Side side, const ExactShape& shape, const std::byte* page,
                     const TargetRows& rows) {
  const int bytes = ElementBytes(shape.dtype);
  for (int t = 0; t < shape.tokens; ++t) {
    CopyRow(shape, page + ExactRowOffset(side, t, shape.head_size, bytes), {1, rows.channel_stride},
            RowAddress(rows, t, bytes));
  }
}

SourceRows ExactRows(Side side, const ExactShape& shape, const std::byte* page) {
  SourceRows rows;
  rows.chunks[0] = page + ExactRowOffset(side, 0, shape.head_size, ElementBytes(shape.dtype));
  rows.token_stride = shape.head_size;
  return rows;
}

}  // namespace fq
