// Errors of the CUDA runtime as absl::Status. Callable from any thread.
#pragma once

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace fq {

// OK, ResourceExhausted when the device has no memory left, otherwise Internal; `what` names the
// call. Clears the error, so that a later check does not see it again.
inline absl::Status CudaStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();
  const std::string text = absl::StrCat(what, ": ", cudaGetErrorString(error));
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(text)
                                            : absl::InternalError(text);
}

}  // namespace fq

// Returns the status of a CUDA runtime call unless it succeeded.
#define FQ_RETURN_IF_CUDA_ERROR(expression)                                                      \
  do {                                                                                           \
    if (::absl::Status fq_status = ::fq::CudaStatus((expression), #expression); !fq_status.ok()) \
      return fq_status;                                                                          \
  } while (false)
