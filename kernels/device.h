// A GPU as the server uses it: memory of its own, memory of other processes mapped in, slabs coded
// where they lie. One interface, implemented by cuda/cuda_device.h and, with host memory in the
// GPU's place, by tests/testing/host_device.h.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/codec_set.h"
#include "kernels/memory/memory_space.h"
#include "kernels/params.h"
#include "kernels/slab.h"

namespace fq {

// Chunks of an engine's cache are numbered in units of so many bytes.
inline constexpr uint64_t kChunkUnitBytes = 256;

using DeviceUuid = std::array<uint8_t, 16>;
using IpcHandle = std::array<uint8_t, 64>;  // cudaIpcMemHandle_t, cudaIpcEventHandle_t

// How another process shares its memory. Values are on the wire (proto/segment_socket.md).
enum class ShareKind : uint32_t { kIpcHandle = 1, kFileDescriptor = 2 };

// One whole allocation of another process.
struct SharedAllocation {
  ShareKind kind = ShareKind::kIpcHandle;
  IpcHandle handle{};  // of kIpcHandle
  int fd = -1;         // of kFileDescriptor; stays the caller's
  uint64_t bytes = 0;
};

// Another process's allocation, in this process's address space while this lives. Immutable.
class DeviceMapping {
 public:
  virtual ~DeviceMapping() = default;
  virtual std::byte* data() const = 0;  // device memory
  virtual uint64_t bytes() const = 0;
};

// An event that another process records on its stream. Any thread. It is for the host to wait: a
// stream that waits for the event of a process that is killed first waits forever.
class WorkerEvent {
 public:
  virtual ~WorkerEvent() = default;
  // Whether all is done that it was last recorded behind, or it was never recorded. What is queued
  // after that sees it. Internal: the CUDA call failed.
  virtual absl::StatusOr<bool> Done() const = 0;
};

// Keys and values as one worker holds them on the device. Element (layer, chunk, token, head,
// channel) of K is at layers[layer].k + kChunkUnitBytes * chunk + element bytes * (token *
// token_stride + head * head_stride + channel), of V likewise; layer and head count from the begin
// of the codec's shape. Rows begin at multiples of 16 bytes.
struct DeviceRows {
  struct Layer {
    std::byte* k = nullptr;
    std::byte* v = nullptr;
  };
  absl::Span<const Layer> layers;             // [shape.layers()]
  int64_t token_stride = 0, head_stride = 0;  // elements
  int32_t tokens_per_chunk = 0;
};

// A piece of device memory. For sums: begins at a multiple of 16 bytes and has as many.
struct DeviceRegion {
  std::byte* data = nullptr;
  uint64_t bytes = 0;
};

// One block to encode or decode.
struct DeviceBlock {
  BlockId id;
  PageKind kind = PageKind::kBase;  // of the primary extent: kExact, kBase or kUniversal
  // Extents in device memory, [ExtentBytes(kind, sink)], at multiples of 64.
  std::byte* primary = nullptr;
  std::byte* refinement = nullptr;           // or null
  int rows = 0;                              // index into the call's DeviceRows
  std::array<int32_t, kMaxChunks> chunks{};  // [ceil((first_token + 64) / tokens_per_chunk)]
  int32_t first_token = 0;                   // of the block within chunks[0]
};

// The slabs of one shape on one device; bytes as of SlabCodec with the same arguments. Immutable,
// any thread.
class DeviceCodec {
 public:
  virtual ~DeviceCodec() = default;
  virtual const SlabShape& shape() const = 0;
};

// Rows of `row_bytes` bytes each, `stride_bytes` apart in device memory, wanted one behind the
// other in host memory.
struct DeviceFetch {
  std::byte* host = nullptr;  // [rows * row_bytes]
  const std::byte* device = nullptr;
  uint32_t row_bytes = 0, rows = 1;
  uint64_t stride_bytes = 0;
  uint64_t bytes() const { return uint64_t{row_bytes} * rows; }
};

// Work on the device, done in the order in which it was queued. One thread at a time. What a call
// is given must live until Finish; the addresses are trusted. Failed CUDA calls become Internal
// with the name of the call, or ResourceExhausted without memory.
class DeviceQueue {
 public:
  virtual ~DeviceQueue() = default;

  // Reads the rows, writes whole extents: header, page checksums, pages.
  virtual absl::Status Encode(const DeviceCodec& codec, absl::Span<const DeviceRows> rows,
                              absl::Span<const DeviceBlock> blocks) = 0;

  // Checks every extent (header, length, key, checksum of every page) and writes the rows of pages
  // that hold. After Finish broken[i] is 0, or not 0 when anything of block i failed its check;
  // what the worker's rows of such a block hold is undefined then.
  virtual absl::Status Decode(const DeviceCodec& codec, absl::Span<const DeviceRows> rows,
                              absl::Span<const DeviceBlock> blocks, absl::Span<uint8_t> broken) = 0;

  // After Finish sums[i] is the word sum of regions[i] (kernels/codec/word_sum.h).
  virtual absl::Status Sum(absl::Span<const DeviceRegion> regions, absl::Span<uint64_t> sums) = 0;

  // `host` is best pinned (Device::CreatePinnedSpace); other memory is copied more slowly.
  virtual absl::Status CopyToHost(absl::Span<std::byte> host, const std::byte* device) = 0;

  // The same the other way. May overtake what was queued before it, back to the last Finish, so
  // that it runs beside kernels: nothing of that may use `device`. What is queued later waits.
  virtual absl::Status CopyToDevice(std::byte* device, absl::Span<const std::byte> host) = 0;

  // Many small copies at once; `host` is any memory.
  virtual absl::Status Fetch(absl::Span<const DeviceFetch> parts) = 0;

  // Returns when all that was queued is done.
  virtual absl::Status Finish() = 0;
};

struct DeviceInfo {
  std::string name;
  DeviceUuid uuid{};
  uint64_t total_bytes = 0;
};

// Any thread. Outlives all that it makes.
class Device {
 public:
  virtual ~Device() = default;
  virtual const DeviceInfo& info() const = 0;

  // `urgent`: its work goes before that of queues that are not.
  virtual absl::StatusOr<std::unique_ptr<DeviceQueue>> CreateQueue(bool urgent) = 0;

  // Device memory, `bytes` of it taken at once. ResourceExhausted names what is free. Of this space
  // and the next, different granules may be committed at once (memory/ahead_space.h).
  virtual absl::StatusOr<std::unique_ptr<MemorySpace>> CreateSpace(uint64_t bytes) = 0;

  // Host memory that the device copies to and from at full speed, at most `bytes` of it; taken as
  // it is committed.
  virtual std::unique_ptr<MemorySpace> CreatePinnedSpace(uint64_t bytes) = 0;

  // InvalidArgument: the handle cannot be opened, or its length differs (names both values).
  virtual absl::StatusOr<std::unique_ptr<DeviceMapping>> Map(
      const SharedAllocation& allocation) = 0;
  virtual absl::StatusOr<std::unique_ptr<WorkerEvent>> OpenEvent(const IpcHandle& handle) = 0;

  // As SlabCodec::Create.
  virtual absl::StatusOr<std::unique_ptr<const DeviceCodec>> CreateCodec(
      const SlabShape& shape, std::shared_ptr<const CodecSet> codec_set) = 0;
};

}  // namespace fq
