// Memory and events of another process, opened in this one.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/device.h"

namespace fq {

// On the device that is current in the calling thread; see Device::Map.
absl::StatusOr<std::unique_ptr<DeviceMapping>> MapShared(const SharedAllocation& allocation);

// See Device::OpenEvent: a CudaEvent.
absl::StatusOr<std::unique_ptr<WorkerEvent>> OpenSharedEvent(const IpcHandle& handle);

}  // namespace fq
