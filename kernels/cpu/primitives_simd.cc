#include "kernels/cpu/primitives.h"

// Vectors are kept in arrays, which scalable targets do not allow; SSSE3 and SSE4 have no fused
// multiply-add.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/primitives_simd.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "kernels/cpu/codes-inl.h"
#include "kernels/cpu/matrix-inl.h"
#include "kernels/cpu/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fq {
namespace HWY_NAMESPACE {

// Without fused multiply-add the bytes would differ, so such a target runs the scalar code.
const Primitives* TargetPrimitives() {
#if HWY_NATIVE_FMA
  static const Primitives kPrimitives = {hwy::TargetName(HWY_TARGET),
                                         LoadRows,
                                         StoreRows,
                                         Centre,
                                         Transform,
                                         PrepareSearch,
                                         FindNearest,
                                         QuantiseClass8,
                                         ScaleResidual,
                                         WidenHalves,
                                         WidenPairs,
                                         Refine,
                                         InverseRows,
                                         Score,
                                         Accumulate};
  return &kPrimitives;
#else
  return &ScalarPrimitives();
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace fq
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fq {

HWY_EXPORT(TargetPrimitives);

const Primitives& SimdPrimitives() { return *HWY_DYNAMIC_DISPATCH(TargetPrimitives)(); }

}  // namespace fq
#endif  // HWY_ONCE
