// The codec set on a device: tables, transforms and classes of every (layer, kv head), as the
// kernels read them (tables_layout.h).
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/codec_set.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/tables_layout.h"

namespace fq {

// Bytes of the records of all (layer, kv head) on the host, layer-major.
std::vector<std::byte> PackTables(const CodecSet& set);

// Immutable after Create; all methods may be called from any thread.
class TablesDevice {
 public:
  // Copies to the current device and returns when it is there. ResourceExhausted without memory.
  static absl::StatusOr<TablesDevice> Create(const CodecSet& set) {
    const std::vector<std::byte> packed = PackTables(set);
    FQ_ASSIGN_OR_RETURN(DeviceBuffer buffer, DeviceBuffer::CopyOf(packed.data(), packed.size()));
    return TablesDevice({set.head_size()}, set.kv_heads(), std::move(buffer));
  }

  const TablesLayout& layout() const { return layout_; }
  // Record of (layer, head) in device memory.
  const std::byte* Record(int layer, int head) const {
    return buffer_.as<const std::byte>() +
           static_cast<size_t>(layer * kv_heads_ + head) * layout_.Bytes();
  }

 private:
  TablesDevice(TablesLayout layout, int kv_heads, DeviceBuffer buffer)
      : layout_(layout), kv_heads_(kv_heads), buffer_(std::move(buffer)) {}

  TablesLayout layout_;
  int kv_heads_;
  DeviceBuffer buffer_;
};

}  // namespace fq
