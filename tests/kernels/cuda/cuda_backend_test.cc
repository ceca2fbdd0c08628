#include "kernels/cuda/cuda_backend.h"

#include <iostream>

#include "kernels/base/check.h"
#include "tests/conformance/backend_suite.h"

namespace fq::conformance {
namespace {

#ifdef FQ_EMULATED  // lists take seconds to make there; page_kernels_test has a case with them
constexpr bool kWithLists = false;
#else
constexpr bool kWithLists = true;
#endif

const Backend* OnlyCudaBackend() {
  static const Backend* const backend = [] {
    auto created = CreateCudaBackend(kWithLists);
    if (!created.ok()) std::cerr << created.status() << '\n';
    FQ_CHECK(created.ok());
    return created->release();
  }();
  return backend;
}

#ifdef FQ_EMULATED  // the suite's hundreds of pages are mostly about the copies on the host
INSTANTIATE_TEST_SUITE_P(Emulated, BackendSuite,
                         testing::Combine(testing::Values(OnlyCudaBackend),
                                          testing::Values(Coding::kExact, Coding::kCompact,
                                                          Coding::kNearLossless,
                                                          Coding::kUniversal),
                                          testing::Values(64)),
                         BackendCaseName);
#else
FQ_INSTANTIATE_BACKEND_SUITE(Cuda, OnlyCudaBackend);
#endif

}  // namespace
}  // namespace fq::conformance
