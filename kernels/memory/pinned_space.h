// Host memory that a GPU copies to and from at full speed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "kernels/base/status_macros.h"
#include "kernels/memory/memory_space.h"

namespace fq {

inline constexpr size_t kPinnedGranuleBytes = size_t{16} << 20;

// Readable and writable by the host; pinned for all devices of the process, in granules of
// kPinnedGranuleBytes that begin at multiples of it. Commit makes `device` current in the calling
// thread, takes ten times as long as copying as much, and fails past `most_bytes` or where the
// system pins no more; it may be called for different granules at once. Each granule is pinned by a
// call of its own, and CUDA refuses copies that span two: copy by ForEachPinnedPart.
std::unique_ptr<MemorySpace> CreatePinnedSpace(int device, uint64_t most_bytes);

// Calls copy(offset, bytes), which returns a status, for each part of [host, host + bytes) that
// lies in one granule, in order. The first error ends it.
template <typename Copy>
absl::Status ForEachPinnedPart(const std::byte* host, size_t bytes, const Copy& copy) {
  const auto begin = reinterpret_cast<uintptr_t>(host);
  for (size_t at = 0; at < bytes;) {
    const size_t left = kPinnedGranuleBytes - (begin + at) % kPinnedGranuleBytes;
    const size_t part = std::min(left, bytes - at);
    FQ_RETURN_IF_ERROR(copy(at, part));
    at += part;
  }
  return absl::OkStatus();
}

}  // namespace fq
