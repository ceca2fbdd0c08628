// Memory of the node's GPU for what comes and goes over a peer link.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/device.h"

namespace fq {

// Windows take memory in units of so many bytes.
inline constexpr uint64_t kWindowUnitBytes = uint64_t{32} << 20;
constexpr uint64_t WindowMemoryBytes(uint64_t window_bytes) {
  return (window_bytes + kWindowUnitBytes - 1) / kWindowUnitBytes * kWindowUnitBytes;
}

// At least `bytes` bytes that nothing else uses; bytes() says `bytes`. `room` is let go with the
// memory. ResourceExhausted: the GPU has none left.
absl::StatusOr<std::unique_ptr<DeviceMapping>> AllocateWindow(Device& device, uint64_t bytes,
                                                              std::shared_ptr<const void> room);

}  // namespace fq
