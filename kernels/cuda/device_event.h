// An event of another process, opened here.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/base/status_macros.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/device.h"

namespace fq {

// Owns the event, of device `ordinal`.
class CudaEvent final : public WorkerEvent {
 public:
  CudaEvent(int ordinal, cudaEvent_t event) : ordinal_(ordinal), event_(event) {}
  ~CudaEvent() override { cudaEventDestroy(event_); }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  absl::StatusOr<bool> Done() const override {
    FQ_RETURN_IF_CUDA_ERROR(cudaSetDevice(ordinal_));
    const cudaError_t state = cudaEventQuery(event_);
    if (state == cudaErrorNotReady) return false;
    FQ_RETURN_IF_ERROR(CudaStatus(state, "cudaEventQuery"));
    return true;
  }

 private:
  const int ordinal_;
  const cudaEvent_t event_;
};

}  // namespace fq
