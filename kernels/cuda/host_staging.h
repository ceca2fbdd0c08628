// Pages and rows of a batch on their way between host and device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "absl/status/status.h"
#include "kernels/base/status_macros.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/device_buffer.h"

namespace fq {

// A pinned buffer on the host and one of the same size on the device; both grow. Not thread-safe.
class HostStaging {
 public:
  HostStaging() = default;
  HostStaging(const HostStaging&) = delete;
  HostStaging& operator=(const HostStaging&) = delete;
  ~HostStaging() { cudaFreeHost(host_); }

  // Both buffers hold at least `bytes` afterwards; contents are lost when they grow.
  absl::Status Reserve(size_t bytes) {
    if (bytes <= device_.bytes()) return absl::OkStatus();
    cudaFreeHost(host_);
    host_ = nullptr;
    device_ = DeviceBuffer();
    FQ_RETURN_IF_CUDA_ERROR(cudaMallocHost(&host_, bytes));
    FQ_ASSIGN_OR_RETURN(device_, DeviceBuffer::Allocate(bytes));
    return absl::OkStatus();
  }

  size_t bytes() const { return device_.bytes(); }
  std::byte* host() const { return static_cast<std::byte*>(host_); }
  std::byte* device() const { return device_.as<std::byte>(); }

  // Queues the copy of bytes [begin, end).
  absl::Status ToDevice(size_t begin, size_t end, cudaStream_t stream) const {
    FQ_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(device() + begin, host() + begin, end - begin,
                                            cudaMemcpyHostToDevice, stream));
    return absl::OkStatus();
  }
  absl::Status ToHost(size_t begin, size_t end, cudaStream_t stream) const {
    FQ_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(host() + begin, device() + begin, end - begin,
                                            cudaMemcpyDeviceToHost, stream));
    return absl::OkStatus();
  }

 private:
  void* host_ = nullptr;
  DeviceBuffer device_;
};

}  // namespace fq
