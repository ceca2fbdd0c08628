// An engine's tensors on the node's GPU: what it sent over the segment socket
// (proto/segment_socket.md, "Device memory"), and the same mapped into this process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/device.h"

namespace fq {

struct DeviceRegistration {
  struct Layer {
    uint32_t allocation = 0;  // index
    uint64_t offset = 0;      // bytes, a multiple of 16
  };
  DeviceUuid uuid{};
  std::vector<SharedAllocation> allocations;
  std::vector<Layer> layers;
  std::optional<IpcHandle> event;
};

inline constexpr size_t kMaxSharedAllocations = 128;
inline constexpr size_t kMaxSharedLayers = 1024;
// Of a whole packet, the session's id included.
inline constexpr size_t kMaxRegistrationBytes =
    128 + 72 * kMaxSharedAllocations + 16 * kMaxSharedLayers;

// Reads a packet of operation 3; `descriptors` came with it and stay the caller's. InvalidArgument
// names the field and both values.
absl::StatusOr<DeviceRegistration> ParseDeviceRegistration(absl::Span<const std::byte> packet,
                                                           absl::Span<const int> descriptors);

// The mapped tensors. Immutable; unmapped when the last call that uses it lets go.
class DeviceSegment {
 public:
  // InvalidArgument names the field and both values: another GPU, other layers than the session's,
  // a layer outside its allocation, a handle that does not open.
  static absl::StatusOr<std::shared_ptr<const DeviceSegment>> Map(
      Device& device, const DeviceRegistration& registration, int session_layers);

  // The node's own memory instead: layer l begins `layer_stride` bytes after layer l - 1. At least
  // `layers` * `layer_stride` bytes.
  static std::shared_ptr<const DeviceSegment> Over(std::unique_ptr<DeviceMapping> memory,
                                                   int layers, uint64_t layer_stride);

  // Where each layer begins, [session_layers].
  absl::Span<std::byte* const> layers() const { return layers_; }
  // From there to the end of the allocation, the least of all layers.
  uint64_t layer_bytes() const { return layer_bytes_; }
  // Null when the engine shares none.
  const WorkerEvent* event() const { return event_.get(); }
  ShareKind share_kind() const { return share_kind_; }
  // Expires once everything is unmapped; a pointer to the segment does so before.
  std::weak_ptr<const void> presence() const { return presence_; }

 private:
  DeviceSegment() = default;
  std::shared_ptr<const void> presence_ = std::make_shared<char>();  // goes last
  std::vector<std::unique_ptr<DeviceMapping>> mappings_;
  std::vector<std::byte*> layers_;
  uint64_t layer_bytes_ = UINT64_MAX;
  ShareKind share_kind_ = ShareKind::kIpcHandle;
  std::unique_ptr<WorkerEvent> event_;
};

}  // namespace fq
