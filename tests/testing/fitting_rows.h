// Rows of whole blocks as a codec set expects them, and as it does not. For tests.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/codec_set.h"
#include "kernels/params.h"
#include "tests/testing/codec_set_builder.h"

namespace fq {

// FP32 rows of one block, dense [layer][head][K|V][64][head_size]. The same seed gives the same.
inline std::vector<float> FittingBlock(const CodecSet& set, uint64_t seed) {
  const int d = set.head_size();
  std::vector<float> rows(static_cast<size_t>(set.layers()) * set.kv_heads() * 2 * kBlockTokens *
                          d);
  float* row = rows.data();
  for (int layer = 0; layer < set.layers(); ++layer) {
    for (int head = 0; head < set.kv_heads(); ++head) {
      for (int i = 0; i < 2 * kBlockTokens; ++i, row += d) {
        const HeadCodec& codec = i < kBlockTokens ? set.k(layer, head) : set.v(layer, head);
        MakeRow(codec, d, (seed << 20) + static_cast<uint64_t>(row - rows.data()), row);
      }
    }
  }
  return rows;
}

}  // namespace fq
