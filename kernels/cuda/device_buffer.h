// Memory of the current device that frees itself.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <utility>

#include "absl/status/status.h"
#include "kernels/base/status_macros.h"
#include "kernels/cuda/cuda_status.h"

namespace fq {

// Owns `bytes` bytes on the device that was current at Allocate. Not thread-safe; freeing waits for
// no stream, so the owner must outlive the work that uses it.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(DeviceBuffer&& other) noexcept { Swap(&other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    Swap(&other);
    return *this;
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer() { cudaFree(data_); }

  // Contents are undefined.
  static absl::StatusOr<DeviceBuffer> Allocate(size_t bytes) {
    DeviceBuffer buffer;
    FQ_RETURN_IF_CUDA_ERROR(cudaMalloc(&buffer.data_, bytes));
    buffer.bytes_ = bytes;
    return buffer;
  }

  // A copy of host memory; returns when it is there.
  static absl::StatusOr<DeviceBuffer> CopyOf(const void* host, size_t bytes) {
    FQ_ASSIGN_OR_RETURN(DeviceBuffer buffer, Allocate(bytes));
    FQ_RETURN_IF_CUDA_ERROR(cudaMemcpy(buffer.data_, host, bytes, cudaMemcpyHostToDevice));
    return buffer;
  }

  size_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void Swap(DeviceBuffer* other) {
    std::swap(data_, other->data_);
    std::swap(bytes_, other->bytes_);
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace fq
