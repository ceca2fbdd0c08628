// An event that a queue waits for: another process's, opened here.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/device.h"

namespace fq {

// Owns the event. Immutable.
class CudaEvent final : public WorkerEvent {
 public:
  explicit CudaEvent(cudaEvent_t event) : event_(event) {}
  ~CudaEvent() override { cudaEventDestroy(event_); }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  cudaEvent_t get() const { return event_; }

 private:
  const cudaEvent_t event_;
};

}  // namespace fq
