// One element of a row in memory, unaligned, as FP32 and back. Callable from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/codec/float_convert.h"
#include "kernels/params.h"

namespace fq {

inline float LoadElement(DType dtype, const std::byte* from) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return dtype == DType::kF16 ? HalfToFloat(bits) : BFloat16ToFloat(bits);
}

// Rounds to nearest even.
inline void StoreElement(DType dtype, float value, std::byte* to) {
  if (dtype == DType::kF32) {
    std::memcpy(to, &value, sizeof(value));
    return;
  }
  const uint16_t bits = dtype == DType::kF16 ? FloatToHalf(value) : FloatToBFloat16(value);
  std::memcpy(to, &bits, sizeof(bits));
}

}  // namespace fq
