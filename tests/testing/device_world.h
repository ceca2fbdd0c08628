// A Device and the process beside it whose memory it maps, for the tests that every Device passes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "kernels/device.h"

namespace fq {

// An allocation of the worker. Not thread-safe.
class WorkerMemory {
 public:
  virtual ~WorkerMemory() = default;
  virtual SharedAllocation Share() const = 0;
  virtual void Write(uint64_t offset, absl::Span<const std::byte> bytes) = 0;
  virtual std::vector<std::byte> Read(uint64_t offset, uint64_t bytes) = 0;
};

// The worker: one stream, one event. Not thread-safe.
class Worker {
 public:
  virtual ~Worker() = default;
  virtual std::unique_ptr<WorkerMemory> Allocate(ShareKind kind, uint64_t bytes) = 0;
  virtual IpcHandle event() const = 0;

  // Queue work, and then the write or the read, record the event and return: without waiting for
  // the event a test is much sooner.
  virtual void WriteLate(WorkerMemory* memory, uint64_t offset,
                         absl::Span<const std::byte> bytes) = 0;
  virtual void ReadLate(WorkerMemory* memory, uint64_t offset, uint64_t bytes) = 0;
  // Waits for all that is queued; what the last ReadLate found.
  virtual std::vector<std::byte> Finish() = 0;
};

class DeviceWorld {
 public:
  virtual ~DeviceWorld() = default;
  virtual Device& device() = 0;
  virtual Worker& worker() = 0;
};

// Each test binary says how it makes one.
std::unique_ptr<DeviceWorld> CreateDeviceWorld();

}  // namespace fq
