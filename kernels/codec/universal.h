// The codec without calibration: Walsh-Hadamard transform, Lloyd-Max levels of the unit Gaussian,
// one FP16 norm per row (FORMAT.md section 6). Pure functions, callable from any thread.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/base/host_device.h"
#include "kernels/codec/float_convert.h"

namespace fq {

inline constexpr int kLevels = 16;

// Lloyd-Max levels of the unit Gaussian, in rising order. A function and not a constant: device
// code cannot index an array of the host.
struct LevelTable {
  float level[kLevels];
};
FQ_HD constexpr LevelTable LloydMaxLevels() {
  return {{-2.7326f, -2.0690f, -1.6181f, -1.2562f, -0.9424f, -0.6568f, -0.3881f, -0.1284f, 0.1284f,
           0.3881f, 0.6568f, 0.9424f, 1.2562f, 1.6181f, 2.0690f, 2.7326f}};
}

// Channels that one Walsh-Hadamard block spans: the largest power of two that divides the head
// size.
FQ_HD constexpr int HadamardBlock(int head_size) { return head_size & -head_size; }

// One butterfly of the transform; `scale` is 1 except in the last stage, where it makes the
// transform orthonormal.
struct Butterfly {
  float sum, difference;
};
FQ_HD inline Butterfly HadamardButterfly(float a, float b, float scale) {
  return {(a + b) * scale, (a - b) * scale};
}

// Level index 0..15 nearest to `value`, ties to the lower one; NaN gives 0.
FQ_HD inline int NearestLevel(float value) {
  constexpr LevelTable kTable = LloydMaxLevels();
  int index = 0;
  for (int i = 0; i + 1 < kLevels; ++i) {
    const float midpoint = (kTable.level[i] + kTable.level[i + 1]) * 0.5f;
    index += value > midpoint ? 1 : 0;
  }
  return index;
}

// FP16 bits of the norm of a row from the sum of its squares; at least 2^-24, at most 65504.
FQ_HD inline uint16_t UniversalNorm(float sum_of_squares, int head_size) {
  const float norm = sqrtf(sum_of_squares / static_cast<float>(head_size));
  if (norm >= 65504.0f) return 0x7BFF;
  const uint16_t half = FloatToHalf(norm);
  return half == 0 ? 1 : half;
}

}  // namespace fq
