#include "kernels/cpu/primitives.h"

namespace fq {

const Primitives& SimdPrimitives() { return ScalarPrimitives(); }

}  // namespace fq
