// For programs that have nothing to go on with after an error: print it and abort.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdio>
#include <utility>

#include "absl/status/statusor.h"
#include "kernels/base/check.h"

namespace fq {

inline void Check(cudaError_t error) {
  if (error != cudaSuccess) std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  FQ_CHECK(error == cudaSuccess);
}

inline void Check(const absl::Status& status) {
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  FQ_CHECK(status.ok());
}

template <typename T>
T Value(absl::StatusOr<T> value) {
  Check(value.status());
  return *std::move(value);
}

}  // namespace fq
