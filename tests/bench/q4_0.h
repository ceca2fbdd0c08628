// The rival of the benchmark: q4_0 of llama.cpp, 32 values in 18 bytes (one FP16 scale, 32
// nibbles), over FP16 rows.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/codec/float_convert.h"

namespace fq {

inline constexpr int kQ4Values = 32;
inline constexpr int kQ4Bytes = 18;

// Codes 32 FP32 values.
inline void EncodeQ4(const float* x, std::byte* block) {
  float extreme = 0.0f;
  for (int i = 0; i < kQ4Values; ++i) {
    if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
  }
  const float scale = extreme / -8.0f, inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
  const uint16_t half = FloatToHalf(scale);
  std::memcpy(block, &half, sizeof(half));
  for (int i = 0; i < kQ4Values / 2; ++i) {
    const int low = std::min(15, static_cast<int>(x[i] * inverse + 8.5f));
    const int high = std::min(15, static_cast<int>(x[i + kQ4Values / 2] * inverse + 8.5f));
    block[2 + i] = static_cast<std::byte>(low | high << 4);
  }
}

inline void DecodeQ4(const std::byte* block, float* x) {
  uint16_t half;
  std::memcpy(&half, block, sizeof(half));
  const float scale = HalfToFloat(half);
  for (int i = 0; i < kQ4Values / 2; ++i) {
    const int code = static_cast<int>(block[2 + i]);
    x[i] = static_cast<float>((code & 15) - 8) * scale;
    x[i + kQ4Values / 2] = static_cast<float>((code >> 4) - 8) * scale;
  }
}

}  // namespace fq
