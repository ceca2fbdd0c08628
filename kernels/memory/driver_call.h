// Functions of the CUDA driver, looked up at run time: a program that uses them starts on machines
// without a driver. Callable from any thread.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/base/status_macros.h"

namespace fq {

// A driver function as <cuda.h> of `version` (1000 * major + 10 * minor) declares it, for example
// DriverFunction<decltype(cuMemMap)>("cuMemMap", 10020). Unimplemented when the driver is older or
// absent.
template <typename Function>
absl::StatusOr<Function*> DriverFunction(const std::string& name, unsigned version) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name.c_str(), &found, version, cudaEnableDefault, &result);
  if (error == cudaSuccess && result == cudaDriverEntryPointSuccess) {
    return reinterpret_cast<Function*>(found);
  }
  cudaGetLastError();
  return absl::UnimplementedError("the CUDA driver has no " + name + " (CUDA " +
                                  std::to_string(version / 1000) + "." +
                                  std::to_string(version % 1000 / 10) + ")");
}

// In a function that returns a Status or StatusOr: `field` becomes the driver's function `name`, or
// the caller gets the error. `name` as in <cuda.h>, whose macros say what it is called in
// `version`.
#define FQ_LOOK_UP(field, name, version) \
  FQ_ASSIGN_OR_RETURN(field, ::fq::DriverFunction<decltype(name)>(#name, version))

// OK, ResourceExhausted without memory, otherwise Internal; `what` names the call.
inline absl::Status DriverStatus(CUresult result, const std::string& what) {
  if (result == CUDA_SUCCESS) return absl::OkStatus();
  const char* text = nullptr;
  const auto describe = DriverFunction<decltype(cuGetErrorString)>("cuGetErrorString", 6000);
  if (describe.ok()) (*describe)(result, &text);
  const std::string message =
      what + ": " + (text != nullptr ? text : "CUresult " + std::to_string(result));
  return result == CUDA_ERROR_OUT_OF_MEMORY ? absl::ResourceExhaustedError(message)
                                            : absl::InternalError(message);
}

}  // namespace fq
