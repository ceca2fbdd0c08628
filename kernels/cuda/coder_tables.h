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
  // Copies to the current device, makes the candidate lists of the encoder's search there (1.4 MiB
  // a kv head and layer; without them it looks at all entries, to the same effect) and returns when
  // that is done. ResourceExhausted without memory.
  static absl::StatusOr<CoderTables> Create(const CodecSet& set, bool with_lists = true);

  int head_size() const { return head_size_; }
  // Device memory.
  const std::byte* data() const { return coders_.as<const std::byte>(); }
  const std::byte* lists() const { return lists_.as<const std::byte>(); }  // null without

 private:
  CoderTables(int head_size, DeviceBuffer coders, DeviceBuffer lists)
      : head_size_(head_size), coders_(std::move(coders)), lists_(std::move(lists)) {}

  int head_size_;
  DeviceBuffer coders_, lists_;
};

}  // namespace fq
