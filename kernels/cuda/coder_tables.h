// The coders of a codec set on a device (coder_layout.h).
#pragma once

#include <cstddef>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/codec_set.h"
#include "kernels/cuda/coder_layout.h"
#include "kernels/cuda/device_buffer.h"

namespace fq {

// Bytes of all coders on the host: layer-major, then kv head, then K, V.
std::vector<std::byte> PackCoders(const CodecSet& set);

// Immutable after Create; all methods may be called from any thread.
class CoderTables {
 public:
  // Copies to the current device and returns when it is there. ResourceExhausted without memory.
  static absl::StatusOr<CoderTables> Create(const CodecSet& set);

  int head_size() const { return head_size_; }
  const std::byte* data() const { return buffer_.as<const std::byte>(); }  // device memory

 private:
  CoderTables(int head_size, DeviceBuffer buffer)
      : head_size_(head_size), buffer_(std::move(buffer)) {}

  int head_size_;
  DeviceBuffer buffer_;
};

}  // namespace fq
