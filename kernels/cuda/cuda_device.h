// Opens a GPU as a Device.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/device.h"

namespace fq {

struct CudaDeviceOptions {
  int ordinal = 0;   // of CUDA_VISIBLE_DEVICES; read when `uuid` is empty
  std::string uuid;  // as nvidia-smi -L prints it, "GPU-...", or empty
  // Of the multiprocessors, for the queues that are not urgent: 1..100. Less than 100 needs a
  // driver of CUDA 12.5.
  int background_percent = 100;
  bool with_lists = true;  // see CoderTables
};

// NotFound: no driver, or no such GPU (names those that there are). InvalidArgument: a percentage
// out of range. Unimplemented: the driver cannot do what the options ask.
absl::StatusOr<std::unique_ptr<Device>> OpenCudaDevice(const CudaDeviceOptions& options);

}  // namespace fq
