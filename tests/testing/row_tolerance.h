// How far rows that a GPU decodes may be off.
#pragma once

#include <cmath>

#include "kernels/params.h"

namespace fq {

// `ulps` times a unit in the last place of the element type, and what the sums of the inverse
// transform lose: FP32 ones of up to 256 terms about 1; where they end as FP16 or BF16 rows, those
// of a GPU take FP16 products (`half_products`), which lose as much as the rounding of FP16 rows.
inline double RowTolerance(DType dtype, double value, double ulps, bool half_products) {
  const double ulp = dtype == DType::kF16 ? 0x1p-10 : dtype == DType::kBF16 ? 0x1p-7 : 0x1p-23;
  const double sums = half_products && dtype != DType::kF32 ? 8e-3 : 6e-5;
  return ulps * (std::fabs(value) * ulp + sums);
}

}  // namespace fq
