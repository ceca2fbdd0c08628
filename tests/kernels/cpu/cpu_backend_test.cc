#include "tests/conformance/backend_suite.h"

namespace fq::conformance {

FQ_INSTANTIATE_BACKEND_SUITE(Scalar, ScalarBackend);
FQ_INSTANTIATE_BACKEND_SUITE(Cpu, CpuBackend);

}  // namespace fq::conformance
