// Rounding of single values: input sanitising, the 8-bit class, residuals and the int8 rows of the
// sink record (FORMAT.md sections 1, 2, 5). Pure functions, callable from any thread.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/base/host_device.h"

namespace fq {

inline constexpr float kInputLimit = 65504.0f;  // largest FP16
inline constexpr float kClass8Step = 4.5f / 127;
inline constexpr float kClass8InverseStep = 127 / 4.5f;

FQ_HD inline float Clamp(float value, float limit) {
  return value < -limit ? -limit : value > limit ? limit : value;
}

// x - mean of an input element as the lossy codecs see it: NaN counts as the mean, and magnitudes
// end at 65504.
FQ_HD inline float Centred(float value, float mean) {
  return value != value ? 0.0f : Clamp(value, kInputLimit) - mean;
}

// An input element where no mean exists (universal pages, sink rows): NaN counts as 0.
FQ_HD inline float Sanitised(float value) { return Centred(value, 0.0f); }

// Code byte 1..255 of the 8-bit class; NaN becomes the code of 0.
FQ_HD inline uint8_t Class8Code(float value) {
  const float steps = value * kClass8InverseStep;
  if (steps != steps) return 128;
  return static_cast<uint8_t>(static_cast<int>(rintf(Clamp(steps, 127.0f))) + 128);
}

FQ_HD constexpr float Class8Value(uint8_t code) {
  return static_cast<float>(static_cast<int>(code) - 128) * kClass8Step;
}

// 1 / sd, or 0 where that is not finite: such a component has no residual to code.
FQ_HD inline float InverseDeviation(float sd) {
  const float inverse = 1.0f / sd;
  return inverse - inverse == 0.0f ? inverse : 0.0f;
}

// A residual in units of its standard deviation: what the refinement codes.
FQ_HD inline float ScaledResidual(float value, float base, float inverse_deviation) {
  return (value - base) * inverse_deviation;
}

// The decoded value of base and refinement together; bit for bit everywhere.
FQ_HD inline float Refined(float base, float refinement, float sd) {
  return fmaf(sd, refinement, base);
}

// Scale of an int8 row from the largest magnitude in it; 1 where it would be 0, so that 0 / scale
// is 0.
FQ_HD inline float SinkScale(float abs_max) {
  const float scale = abs_max / 127.0f;
  return scale == 0.0f ? 1.0f : scale;
}

FQ_HD inline int8_t SinkCode(float value, float scale) {
  return static_cast<int8_t>(rintf(Clamp(value / scale, 127.0f)));
}

FQ_HD inline float SinkValue(int8_t code, float scale) { return static_cast<float>(code) * scale; }

}  // namespace fq
