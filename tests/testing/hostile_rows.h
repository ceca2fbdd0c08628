// Rows that no model should make: NaN, infinities, denormals, constant rows, huge outliers, random
// bits. For tests.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/codec/float_convert.h"
#include "tests/testing/random.h"

namespace fq {

// One FP32 value of any bit pattern that tends to break code.
inline float HostileValue(Random* random) {
  switch (random->Below(8)) {
    case 0:
      return FloatFromBits(0x7FC00000u | random->Below(1 << 22));  // NaN
    case 1:
      return FloatFromBits(random->Below(2) << 31 | 0x7F800000u);  // infinity
    case 2:
      return FloatFromBits(random->Below(1 << 23));  // denormal
    case 3:
      return static_cast<float>(random->Uniform()) * 3e38f;
    case 4:
      return static_cast<float>(random->Uniform()) * 65504.0f;
    case 5:
      return 0.0f;
    default:
      return FloatFromBits(static_cast<uint32_t>(random->Next()));
  }
}

// `count` values of which a random share, from none to all, is hostile; some pages are constant.
inline std::vector<float> HostileRows(size_t count, Random* random) {
  const uint32_t share = random->Below(5);
  const bool constant = random->Below(8) == 0;
  const float value = static_cast<float>(random->Gaussian());
  std::vector<float> rows(count);
  for (float& x : rows) {
    x = constant ? value : static_cast<float>(random->Gaussian());
    if (random->Below(16) < share * share) x = HostileValue(random);
  }
  return rows;
}

}  // namespace fq
