#include "kernels/cpu/sink_rows.h"

#include <cmath>
#include <cstring>

#include "kernels/codec/quantise.h"

namespace fq {

void EncodeSinkRows(Side side, int head_size, const float* x, std::byte* record) {
  for (int row = 0; row < kSinkRows; ++row) {
    float abs_max = 0.0f;
    for (int c = 0; c < head_size; ++c) {
      abs_max = std::fmax(abs_max, std::fabs(Sanitised(x[c * kPageTokens + row])));
    }
    const float scale = SinkScale(abs_max);
    std::byte* codes = record + SinkRowOffset(side, row, head_size);
    for (int c = 0; c < head_size; ++c) {
      codes[c] = static_cast<std::byte>(SinkCode(Sanitised(x[c * kPageTokens + row]), scale));
    }
    std::memcpy(record + SinkScaleOffset(side, row, head_size), &scale, sizeof(scale));
  }
}

void DecodeSinkRows(Side side, int head_size, const std::byte* record, float* x) {
  for (int row = 0; row < kSinkRows; ++row) {
    float scale;
    std::memcpy(&scale, record + SinkScaleOffset(side, row, head_size), sizeof(scale));
    const std::byte* codes = record + SinkRowOffset(side, row, head_size);
    for (int c = 0; c < head_size; ++c) {
      x[c * kPageTokens + row] = SinkValue(static_cast<int8_t>(codes[c]), scale);
    }
  }
}

}  // namespace fq
