#include "server/device/device_segment.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/bad_field.h"
#include "kernels/base/status_macros.h"

namespace fq {
namespace {

constexpr size_t kHeadBytes = 128, kAllocationBytes = 72, kLayerBytes = 16;
constexpr uint64_t kLayerAlignment = 16;
constexpr uint32_t kHasEvent = 1;

// Reads fields one after the other; the packet's length has been checked.
class Reader {
 public:
  explicit Reader(const std::byte* at) : at_(at) {}
  template <typename T>
  T Take() {
    T value;
    std::memcpy(&value, at_, sizeof(value));
    at_ += sizeof(value);
    return value;
  }

 private:
  const std::byte* at_;
};

// Bytes 16 to 127.
struct Head {
  uint32_t operation, zeros[3];
  DeviceUuid uuid;
  uint32_t share_kind, allocations, layers, flags;
  IpcHandle event;
};
static_assert(sizeof(Head) == kHeadBytes - 16);

absl::Status CheckHead(const Head& head) {
  if (head.share_kind != static_cast<uint32_t>(ShareKind::kIpcHandle) &&
      head.share_kind != static_cast<uint32_t>(ShareKind::kFileDescriptor)) {
    return BadField("share kind", head.share_kind, "must be 1 (IPC handle) or 2 (file descriptor)");
  }
  if (head.allocations < 1 || head.allocations > kMaxSharedAllocations) {
    return BadField("allocations", head.allocations,
                    absl::StrCat("must be 1..", kMaxSharedAllocations));
  }
  if (head.layers < 1 || head.layers > kMaxSharedLayers) {
    return BadField("layers", head.layers, absl::StrCat("must be 1..", kMaxSharedLayers));
  }
  if (head.flags > kHasEvent) return BadField("flags", head.flags, "must be 0 or 1");
  if (std::any_of(std::begin(head.zeros), std::end(head.zeros), [](uint32_t z) { return z; })) {
    return absl::InvalidArgumentError("bytes 20..31: must be 0");
  }
  return absl::OkStatus();
}

absl::Status CheckLayer(size_t index, const DeviceRegistration::Layer& layer,
                        absl::Span<const SharedAllocation> allocations) {
  const std::string name = absl::StrCat("layers[", index, "]");
  if (layer.allocation >= allocations.size()) {
    return BadField(absl::StrCat(name, ".allocation"), layer.allocation,
                    absl::StrCat("must be below ", allocations.size()));
  }
  if (layer.offset % kLayerAlignment != 0) {
    return BadField(absl::StrCat(name, ".offset"), layer.offset, "must be a multiple of 16");
  }
  const uint64_t bytes = allocations[layer.allocation].bytes;
  if (layer.offset < bytes) return absl::OkStatus();
  return BadField(absl::StrCat(name, ".offset"), layer.offset,
                  absl::StrCat("the allocation has ", bytes, " bytes"));
}

std::string Hex(const DeviceUuid& uuid) {
  return absl::BytesToHexString({reinterpret_cast<const char*>(uuid.data()), uuid.size()});
}

}  // namespace

absl::StatusOr<DeviceRegistration> ParseDeviceRegistration(absl::Span<const std::byte> packet,
                                                           absl::Span<const int> descriptors) {
  if (packet.size() < kHeadBytes) {
    return BadField("bytes of the packet", packet.size(),
                    absl::StrCat("must be at least ", kHeadBytes));
  }
  const auto head = Reader(packet.data() + 16).Take<Head>();
  FQ_RETURN_IF_ERROR(CheckHead(head));
  const size_t bytes = kHeadBytes + kAllocationBytes * head.allocations + kLayerBytes * head.layers;
  if (packet.size() != bytes) {
    return BadField("bytes of the packet", packet.size(), absl::StrCat("must be ", bytes));
  }
  DeviceRegistration registration;
  registration.uuid = head.uuid;
  if (head.flags == kHasEvent) registration.event = head.event;
  const auto kind = static_cast<ShareKind>(head.share_kind);
  const size_t expected = kind == ShareKind::kFileDescriptor ? head.allocations : 0;
  if (descriptors.size() != expected) {
    return BadField("descriptors", descriptors.size(), absl::StrCat("must be ", expected));
  }
  Reader reader(packet.data() + kHeadBytes);
  for (size_t i = 0; i < head.allocations; ++i) {
    SharedAllocation allocation;
    allocation.kind = kind;
    allocation.bytes = reader.Take<uint64_t>();
    allocation.handle = reader.Take<IpcHandle>();
    if (kind == ShareKind::kFileDescriptor) allocation.fd = descriptors[i];
    registration.allocations.push_back(allocation);
  }
  for (size_t i = 0; i < head.layers; ++i) {
    DeviceRegistration::Layer layer;
    layer.allocation = reader.Take<uint32_t>();
    if (reader.Take<uint32_t>() != 0) {
      return absl::InvalidArgumentError(absl::StrCat("layers[", i, "]: bytes 4..7 must be 0"));
    }
    layer.offset = reader.Take<uint64_t>();
    FQ_RETURN_IF_ERROR(CheckLayer(i, layer, registration.allocations));
    registration.layers.push_back(layer);
  }
  return registration;
}

absl::StatusOr<std::shared_ptr<const DeviceSegment>> DeviceSegment::Map(
    Device& device, const DeviceRegistration& registration, int session_layers) {
  if (registration.uuid != device.info().uuid) {
    return absl::InvalidArgumentError(absl::StrCat(
        "uuid = ", Hex(registration.uuid), ": the node's GPU is ", Hex(device.info().uuid)));
  }
  if (registration.layers.size() != static_cast<size_t>(session_layers)) {
    return BadField("layers", registration.layers.size(),
                    absl::StrCat("the session's range has ", session_layers));
  }
  std::shared_ptr<DeviceSegment> segment(new DeviceSegment());
  for (size_t i = 0; i < registration.allocations.size(); ++i) {
    absl::StatusOr<std::unique_ptr<DeviceMapping>> mapping =
        device.Map(registration.allocations[i]);
    if (!mapping.ok()) {
      return absl::Status(mapping.status().code(),
                          absl::StrCat("allocations[", i, "]: ", mapping.status().message()));
    }
    segment->mappings_.push_back(*std::move(mapping));
  }
  segment->share_kind_ = registration.allocations[0].kind;
  for (const DeviceRegistration::Layer& layer : registration.layers) {
    const DeviceMapping& mapping = *segment->mappings_[layer.allocation];
    segment->layers_.push_back(mapping.data() + layer.offset);
    segment->layer_bytes_ = std::min(segment->layer_bytes_, mapping.bytes() - layer.offset);
  }
  if (registration.event.has_value()) {
    FQ_ASSIGN_OR_RETURN(segment->event_, device.OpenEvent(*registration.event));
  }
  return segment;
}

std::shared_ptr<const DeviceSegment> DeviceSegment::Over(std::unique_ptr<DeviceMapping> memory,
                                                         int layers, uint64_t layer_stride) {
  std::shared_ptr<DeviceSegment> segment(new DeviceSegment());
  for (int layer = 0; layer < layers; ++layer) {
    segment->layers_.push_back(memory->data() + static_cast<uint64_t>(layer) * layer_stride);
  }
  segment->layer_bytes_ = memory->bytes() - static_cast<uint64_t>(layers - 1) * layer_stride;
  segment->mappings_.push_back(std::move(memory));
  return segment;
}

}  // namespace fq
