// A Device of the emulated GPU with the real queue and codec; its worker is this process.
#include <cuda_emulation.h>

#include <cstring>

#include "kernels/base/check.h"
#include "kernels/cuda/device_codec.h"
#include "kernels/cuda/device_queue.h"
#include "tests/testing/device_world.h"

namespace fq {
namespace {

DeviceBuffer Allocate(uint64_t bytes) {
  auto buffer = DeviceBuffer::Allocate(bytes);
  FQ_CHECK(buffer.ok());
  return std::move(*buffer);
}

class EmulatedMemory final : public WorkerMemory {
 public:
  EmulatedMemory(ShareKind kind, uint64_t bytes) : kind_(kind), buffer_(Allocate(bytes)) {}

  // Whatever the kind, the handle holds the address.
  SharedAllocation Share() const override {
    SharedAllocation allocation;
    allocation.kind = kind_;
    allocation.bytes = buffer_.bytes();
    const std::byte* data = buffer_.as<std::byte>();
    std::memcpy(allocation.handle.data(), &data, sizeof(data));
    return allocation;
  }
  void Write(uint64_t offset, absl::Span<const std::byte> bytes) override {
    std::memcpy(buffer_.as<std::byte>() + offset, bytes.data(), bytes.size());
  }
  std::vector<std::byte> Read(uint64_t offset, uint64_t bytes) override {
    return {buffer_.as<std::byte>() + offset, buffer_.as<std::byte>() + offset + bytes};
  }

 private:
  const ShareKind kind_;
  const DeviceBuffer buffer_;
};

// Events do not exist here: only tests without them are run.
class EmulatedWorker final : public Worker {
 public:
  std::unique_ptr<WorkerMemory> Allocate(ShareKind kind, uint64_t bytes) override {
    return std::make_unique<EmulatedMemory>(kind, bytes);
  }
  IpcHandle event() const override { FQ_CHECK(false); }
  void WriteLate(WorkerMemory*, uint64_t, absl::Span<const std::byte>) override { FQ_CHECK(false); }
  void ReadLate(WorkerMemory*, uint64_t, uint64_t) override { FQ_CHECK(false); }
  std::vector<std::byte> Finish() override { return {}; }
};

class EmulatedSpace final : public MemorySpace {
 public:
  explicit EmulatedSpace(uint64_t bytes) : buffer_(Allocate(bytes)) {}
  size_t granule_bytes() const override { return buffer_.bytes(); }
  std::byte* Reserve(size_t) override { return buffer_.as<std::byte>(); }
  void Unreserve(std::byte*, size_t) override {}
  bool Commit(std::byte*, size_t) override { return true; }
  void Decommit(std::byte*, size_t) override {}
  bool on_host() const override { return false; }

 private:
  const DeviceBuffer buffer_;
};

class EmulatedMapping final : public DeviceMapping {
 public:
  explicit EmulatedMapping(const SharedAllocation& allocation) : bytes_(allocation.bytes) {
    std::memcpy(&data_, allocation.handle.data(), sizeof(data_));
  }
  std::byte* data() const override { return data_; }
  uint64_t bytes() const override { return bytes_; }

 private:
  std::byte* data_;
  const uint64_t bytes_;
};

class EmulatedDevice final : public Device {
 public:
  const DeviceInfo& info() const override { return info_; }
  absl::StatusOr<std::unique_ptr<DeviceQueue>> CreateQueue(bool) override {
    return CudaQueue::Create(0, nullptr);
  }
  absl::StatusOr<std::unique_ptr<MemorySpace>> CreateSpace(uint64_t bytes) override {
    return std::make_unique<EmulatedSpace>(bytes);
  }
  std::unique_ptr<MemorySpace> CreatePinnedSpace(uint64_t) override { FQ_CHECK(false); }
  absl::StatusOr<std::unique_ptr<DeviceMapping>> Map(const SharedAllocation& allocation) override {
    return std::make_unique<EmulatedMapping>(allocation);
  }
  absl::StatusOr<std::unique_ptr<WorkerEvent>> OpenEvent(const IpcHandle&) override {
    FQ_CHECK(false);
  }
  // Without lists, which take seconds to make here.
  absl::StatusOr<std::unique_ptr<const DeviceCodec>> CreateCodec(
      const SlabShape& shape, std::shared_ptr<const CodecSet> codec_set) override {
    FQ_ASSIGN_OR_RETURN(CoderTables coders, CoderTables::Create(*codec_set, false));
    FQ_ASSIGN_OR_RETURN(SlabLayout layout, SlabLayout::Create(shape, std::move(codec_set)));
    return CudaCodec::Create(std::move(layout),
                             std::make_shared<const CoderTables>(std::move(coders)));
  }

 private:
  DeviceInfo info_;
};

class EmulatedWorld final : public DeviceWorld {
 public:
  Device& device() override { return device_; }
  Worker& worker() override { return worker_; }

 private:
  EmulatedDevice device_;
  EmulatedWorker worker_;
};

}  // namespace

std::unique_ptr<DeviceWorld> CreateDeviceWorld() { return std::make_unique<EmulatedWorld>(); }

}  // namespace fq
