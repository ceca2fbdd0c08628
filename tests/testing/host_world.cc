// The stand-in of a GPU and a worker in this process.
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <thread>

#include "tests/testing/device_world.h"
#include "tests/testing/host_device.h"

namespace fq {
namespace {

class HostMemoryOfWorker final : public WorkerMemory {
 public:
  HostMemoryOfWorker(ShareKind kind, uint64_t bytes) : memory_(kind, bytes) {}
  SharedAllocation Share() const override { return memory_.Share(); }
  void Write(uint64_t offset, absl::Span<const std::byte> bytes) override {
    std::memcpy(memory_.data() + offset, bytes.data(), bytes.size());
  }
  std::vector<std::byte> Read(uint64_t offset, uint64_t bytes) override {
    return {memory_.data() + offset, memory_.data() + offset + bytes};
  }

 private:
  HostWorkerMemory memory_;
};

class HostWorker final : public Worker {
 public:
  ~HostWorker() override { Finish(); }

  std::unique_ptr<WorkerMemory> Allocate(ShareKind kind, uint64_t bytes) override {
    return std::make_unique<HostMemoryOfWorker>(kind, bytes);
  }
  IpcHandle event() const override { return event_.handle(); }

  void WriteLate(WorkerMemory* memory, uint64_t offset,
                 absl::Span<const std::byte> bytes) override {
    Later([=] { memory->Write(offset, bytes); });
  }
  void ReadLate(WorkerMemory* memory, uint64_t offset, uint64_t bytes) override {
    Later([=] { read_ = memory->Read(offset, bytes); });
  }
  std::vector<std::byte> Finish() override {
    finishing_ = true;
    if (stream_.joinable()) stream_.join();
    return read_;
  }

 private:
  // Whoever asks for the event a second time is waiting for it.
  static constexpr int64_t kAskedByWhoWaits = 2;

  // Late is when somebody waits for it.
  void Later(std::function<void()> work) {
    Finish();
    finishing_ = false;
    event_.Record();
    stream_ = std::thread([this, work = std::move(work)] {
      while (!finishing_ && event_.asked() < kAskedByWhoWaits) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      work();
      event_.Complete();
    });
  }

  HostWorkerEvent event_;
  std::atomic<bool> finishing_{false};
  std::vector<std::byte> read_;
  std::thread stream_;
};

class HostWorld final : public DeviceWorld {
 public:
  Device& device() override { return device_; }
  Worker& worker() override { return worker_; }

 private:
  HostDevice device_;
  HostWorker worker_;
};

}  // namespace

std::unique_ptr<DeviceWorld> CreateDeviceWorld() { return std::make_unique<HostWorld>(); }

}  // namespace fq
