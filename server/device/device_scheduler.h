// Turns calls into launches on the GPU: calls of many sessions that wait together become one, large
// ones are cut into pieces, sessions take turns. Loads have queues of their own that go before
// those of stores. Has no threads: whoever waits for a call launches, for all that wait. Thread-
// safe.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "kernels/device.h"

namespace fq {

enum class DeviceWork : uint8_t { kEncode, kDecode, kRead };

// What one call asks of the GPU. Everything it names lives until Run returns.
struct DeviceCall {
  // An extent in pinned host memory that must be on the device before its block is decoded, or,
  // where a call has no blocks, when the call is done.
  struct Upload {
    size_t block = 0;  // index into blocks; ascending
    std::byte* device = nullptr;
    absl::Span<const std::byte> host;
  };
  // kRead: an extent that is wanted in host memory.
  struct Download {
    absl::Span<std::byte> host;
    const std::byte* device = nullptr;
  };

  // kEncode: rows that are wanted in host memory behind their block's encoding.
  struct Sample {
    size_t block = 0;  // index into blocks
    DeviceFetch part;
  };

  DeviceWork work = DeviceWork::kDecode;
  const void* session = nullptr;  // who takes turns
  // Asked before each launch: an error is the call's result, and nothing more of it is launched.
  std::function<absl::Status()> still_wanted = [] { return absl::OkStatus(); };
  const DeviceCodec* codec = nullptr;  // of kEncode and kDecode
  DeviceRows rows;                     // of the session's segment; blocks[i].rows is set by Run
  std::vector<DeviceBlock> blocks;
  std::vector<Upload> uploads;
  std::vector<Download> downloads;
  std::vector<Sample> samples;
  std::vector<DeviceRegion> regions;  // of kRead: whose sums are wanted
  std::vector<uint64_t> sums;         // out, of kRead: [regions]
  std::vector<uint8_t> broken;        // out, of kDecode: [blocks], not 0 where a check failed
};

// Counters since the start, and how it is now.
struct DeviceSchedulerStats {
  uint64_t launches = 0;  // batches given to a queue
  uint64_t calls = 0;     // pieces of calls in them
  uint64_t waiting = 0;   // pieces of calls that are in no batch yet
};

class DeviceScheduler {
 public:
  struct Limits {
    int queues = 3;  // of loads, and of stores
    // Of a call, under way at once: one is prepared while one computes, and begins as that one ends
    // on its last multiprocessors. Fewer than `queues`, so that others' calls need not wait.
    int batches_of_a_call = 2;
    uint32_t batch_pages = 1 << 18;  // of one launch; a single block may have more
  };

  static absl::StatusOr<std::unique_ptr<DeviceScheduler>> Create(Device* device,
                                                                 const Limits& limits);

  // Blocks until all of the call is done, also when it fails: afterwards the GPU touches none of
  // its memory. Internal: a failed CUDA call; the device should not be used any more. Errors of
  // still_wanted.
  absl::Status Run(DeviceCall& call);

  DeviceSchedulerStats Stats() const;

 private:
  // Blocks [begin, end) of a call.
  struct Running;
  struct Piece {
    Running* call = nullptr;
    size_t begin = 0, end = 0;
  };
  struct Lane {
    std::vector<std::unique_ptr<DeviceQueue>> idle;
    std::deque<const void*> turns;  // sessions that wait, who is next first
    absl::flat_hash_map<const void*, std::deque<Piece>> waiting;
    absl::CondVar changed;  // a queue became idle, or a call is done
  };
  using Batch = std::vector<Piece>;
  struct Launched;
  // Of the calling thread, oldest first.
  using LaunchedBatches = std::deque<std::unique_ptr<Launched>>;

  explicit DeviceScheduler(const Limits& limits) : limits_(limits) {}
  void Enqueue(Lane& lane, Running& running) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  size_t BlocksPerPiece(const DeviceCall& call) const;
  void LaunchNext(Lane& lane, LaunchedBatches& launched) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FinishOldest(Lane& lane, LaunchedBatches& launched) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Batch TakeBatch(Lane& lane) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Limits limits_;
  mutable absl::Mutex mutex_;
  std::array<Lane, 2> lanes_ ABSL_GUARDED_BY(mutex_);  // loads, stores
  DeviceSchedulerStats stats_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace fq
