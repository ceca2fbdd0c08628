// A Device for tests without a GPU: host memory in the GPU's place, the CPU's codec in the
// kernels'. As strict as the real one may be: device memory kills a host that touches it
// (guarded_memory.h), nothing is done before Finish and uploads first of all, and the rows of
// a broken block are overwritten.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "kernels/device.h"

namespace fq {

// An allocation of a worker as its engine has it. Freed when neither this nor a mapping lives.
class HostWorkerMemory {
 public:
  HostWorkerMemory(ShareKind kind, uint64_t bytes);
  ~HostWorkerMemory();
  HostWorkerMemory(const HostWorkerMemory&) = delete;
  HostWorkerMemory& operator=(const HostWorkerMemory&) = delete;

  // The worker's own view; zero at first.
  std::byte* data() const;
  // What the worker sends. A handle is good in this process only, a descriptor (a memfd, this
  // object's) in others too.
  SharedAllocation Share() const;

  struct State;

 private:
  std::shared_ptr<State> state_;
};

// An event of a worker in this process. Any thread.
class HostWorkerEvent {
 public:
  HostWorkerEvent();
  ~HostWorkerEvent();
  HostWorkerEvent(const HostWorkerEvent&) = delete;
  HostWorkerEvent& operator=(const HostWorkerEvent&) = delete;

  IpcHandle handle() const;
  void Record();    // behind work that is not done yet
  void Complete();  // the work before the last Record is done
  // How often somebody has asked since the last Record, and was told that it is not done.
  int64_t asked() const;

  struct State;

 private:
  std::shared_ptr<State> state_;
};

class HostDevice final : public Device {
 public:
  // With `total_bytes` for its spaces; of another `number` it is another GPU.
  explicit HostDevice(uint64_t total_bytes = uint64_t{256} << 20, uint32_t number = 0);
  ~HostDevice() override;

  // Faults, and what tests look at.
  void FailNextFinish(absl::Status status);  // of any queue; what it would have done is not done
  void Lose();                               // from here on every call fails with Internal
  uint64_t free_bytes() const;
  int open_mappings() const;

  const DeviceInfo& info() const override { return info_; }
  absl::StatusOr<std::unique_ptr<DeviceQueue>> CreateQueue(bool urgent) override;
  absl::StatusOr<std::unique_ptr<MemorySpace>> CreateSpace(uint64_t bytes) override;
  std::unique_ptr<MemorySpace> CreatePinnedSpace(uint64_t bytes) override;
  absl::StatusOr<std::unique_ptr<DeviceMapping>> Map(const SharedAllocation& allocation) override;
  absl::StatusOr<std::unique_ptr<WorkerEvent>> OpenEvent(const IpcHandle& handle) override;
  absl::StatusOr<std::unique_ptr<const DeviceCodec>> CreateCodec(
      const SlabShape& shape, std::shared_ptr<const CodecSet> codec_set) override;

  struct State;

 private:
  const std::shared_ptr<State> state_;  // shared with what it makes
  DeviceInfo info_;
};

}  // namespace fq
