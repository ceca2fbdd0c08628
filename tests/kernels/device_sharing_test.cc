// What every Device does with memory and events: spaces of its own, a worker's memory mapped in,
// work ordered behind a worker's.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/device_world.h"

namespace fq {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kBytes = uint64_t{4} << 20;  // of a worker's allocation

template <typename T>
T Value(absl::StatusOr<T> value) {
  if (!value.ok()) throw std::runtime_error(value.status().ToString());
  return std::move(*value);
}

std::vector<std::byte> Filled(size_t bytes, int value) {
  return std::vector<std::byte>(bytes, static_cast<std::byte>(value));
}

class DeviceSharingTest : public testing::Test {
 protected:
  void SetUp() override {
    world_ = CreateDeviceWorld();
    queue_ = Value(device().CreateQueue(true));
  }
  Device& device() { return world_->device(); }
  Worker& worker() { return world_->worker(); }

  std::vector<std::byte> FromDevice(const std::byte* from, size_t bytes) {
    std::vector<std::byte> host(bytes);
    EXPECT_EQ(queue_->CopyToHost(absl::MakeSpan(host), from), absl::OkStatus());
    EXPECT_EQ(queue_->Finish(), absl::OkStatus());
    return host;
  }
  void ToDevice(std::byte* to, const std::vector<std::byte>& bytes) {
    EXPECT_EQ(queue_->CopyToDevice(to, bytes), absl::OkStatus());
    EXPECT_EQ(queue_->Finish(), absl::OkStatus());
  }

  static void Await(const WorkerEvent& event) {
    while (!Value(event.Done())) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

  std::unique_ptr<DeviceWorld> world_;
  std::unique_ptr<DeviceQueue> queue_;
};

TEST_F(DeviceSharingTest, Info_NamesTheDevice) {
  EXPECT_FALSE(device().info().name.empty());
  EXPECT_NE(device().info().uuid, DeviceUuid{});
  EXPECT_GT(device().info().total_bytes, kBytes);
}

TEST_F(DeviceSharingTest, Space_CommittedRanges_HoldBytesUpToItsSize) {
  const std::unique_ptr<MemorySpace> space = Value(device().CreateSpace(kBytes));
  EXPECT_FALSE(space->on_host());
  const size_t granule = space->granule_bytes();
  std::byte* begin = space->Reserve(2 * kBytes);
  ASSERT_NE(begin, nullptr);
  ASSERT_TRUE(space->Commit(begin + kBytes, kBytes));
  EXPECT_FALSE(space->Commit(begin, granule));
  ToDevice(begin + kBytes, Filled(kBytes, 9));
  EXPECT_TRUE(FromDevice(begin + kBytes, kBytes) == Filled(kBytes, 9));
  space->Decommit(begin + kBytes, granule);
  ASSERT_TRUE(space->Commit(begin, granule));
  ToDevice(begin, Filled(granule, 3));
  EXPECT_TRUE(FromDevice(begin, granule) == Filled(granule, 3));
  EXPECT_TRUE(FromDevice(begin + 2 * kBytes - granule, granule) == Filled(granule, 9));
  space->Unreserve(begin, 2 * kBytes);
}

TEST_F(DeviceSharingTest, Space_MoreThanThereIs_NamesWhatIsFree) {
  const auto space = device().CreateSpace(device().info().total_bytes + kBytes);
  ASSERT_EQ(space.status().code(), absl::StatusCode::kResourceExhausted) << space.status();
  EXPECT_THAT(std::string(space.status().message()), HasSubstr("free"));
  EXPECT_TRUE(device().CreateSpace(kBytes).ok());
}

TEST_F(DeviceSharingTest, PinnedSpace_IsHostMemory) {
  const std::unique_ptr<MemorySpace> space = device().CreatePinnedSpace(uint64_t{64} << 20);
  EXPECT_TRUE(space->on_host());
  const size_t bytes = space->granule_bytes();
  std::byte* host = space->Reserve(bytes);
  ASSERT_NE(host, nullptr);
  ASSERT_TRUE(space->Commit(host, bytes));
  std::memset(host, 5, bytes);
  const std::unique_ptr<MemorySpace> own = Value(device().CreateSpace(kBytes));
  std::byte* device_memory = own->Reserve(kBytes);
  ASSERT_TRUE(own->Commit(device_memory, kBytes));
  const size_t copied = std::min<size_t>(bytes, kBytes);
  EXPECT_EQ(queue_->CopyToDevice(device_memory, absl::MakeConstSpan(host, copied)),
            absl::OkStatus());
  EXPECT_TRUE(FromDevice(device_memory, copied) == Filled(copied, 5));
  own->Unreserve(device_memory, kBytes);
  space->Unreserve(host, bytes);
}

TEST_F(DeviceSharingTest, Map_EitherKind_SameMemoryBothWays) {
  for (ShareKind kind : {ShareKind::kIpcHandle, ShareKind::kFileDescriptor}) {
    const std::unique_ptr<WorkerMemory> memory = worker().Allocate(kind, kBytes);
    memory->Write(100, Filled(50, 7));
    const std::unique_ptr<DeviceMapping> mapping = Value(device().Map(memory->Share()));
    EXPECT_EQ(mapping->bytes(), kBytes);
    EXPECT_TRUE(FromDevice(mapping->data() + 100, 50) == Filled(50, 7));
    ToDevice(mapping->data() + kBytes - 20, Filled(20, 8));
    EXPECT_TRUE(memory->Read(kBytes - 20, 20) == Filled(20, 8));
  }
}

TEST_F(DeviceSharingTest, Map_Descriptor_StaysTheCallers) {
  const std::unique_ptr<WorkerMemory> memory =
      worker().Allocate(ShareKind::kFileDescriptor, kBytes);
  const int fd = memory->Share().fd;
  Value(device().Map(memory->Share()));
  const int copy = dup(fd);
  EXPECT_GE(copy, 0);
  close(copy);
  EXPECT_TRUE(device().Map(memory->Share()).ok());
}

TEST_F(DeviceSharingTest, Map_OtherLengthThanTheAllocation_NamesBoth) {
  const std::unique_ptr<WorkerMemory> memory = worker().Allocate(ShareKind::kIpcHandle, kBytes);
  for (uint64_t bytes : {kBytes / 2, kBytes * 2, uint64_t{0}}) {
    SharedAllocation allocation = memory->Share();
    allocation.bytes = bytes;
    const auto mapping = device().Map(allocation);
    ASSERT_EQ(mapping.status().code(), absl::StatusCode::kInvalidArgument) << mapping.status();
    EXPECT_THAT(std::string(mapping.status().message()), HasSubstr(std::to_string(bytes)));
    EXPECT_THAT(std::string(mapping.status().message()), HasSubstr(std::to_string(kBytes)));
  }
  EXPECT_TRUE(device().Map(memory->Share()).ok());
}

TEST_F(DeviceSharingTest, Map_MoreThanTheDescriptorHas_Refused) {
  const std::unique_ptr<WorkerMemory> memory =
      worker().Allocate(ShareKind::kFileDescriptor, kBytes);
  for (uint64_t bytes : {kBytes * 2, uint64_t{0}}) {
    SharedAllocation allocation = memory->Share();
    allocation.bytes = bytes;
    EXPECT_EQ(device().Map(allocation).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(DeviceSharingTest, Map_Garbage_InvalidArgument) {
  SharedAllocation allocation;
  allocation.bytes = kBytes;
  allocation.handle.fill(0x5A);
  EXPECT_EQ(device().Map(allocation).status().code(), absl::StatusCode::kInvalidArgument);
  allocation.kind = ShareKind::kFileDescriptor;
  for (int fd : {-1, 0, 1000000}) {
    allocation.fd = fd;
    EXPECT_EQ(device().Map(allocation).status().code(), absl::StatusCode::kInvalidArgument)
        << "descriptor " << fd;
  }
  int pipes[2];
  ASSERT_EQ(pipe(pipes), 0);
  allocation.fd = pipes[0];
  EXPECT_EQ(device().Map(allocation).status().code(), absl::StatusCode::kInvalidArgument);
  close(pipes[0]);
  close(pipes[1]);
  // The device is as before.
  const std::unique_ptr<WorkerMemory> memory = worker().Allocate(ShareKind::kIpcHandle, kBytes);
  EXPECT_TRUE(device().Map(memory->Share()).ok());
}

TEST_F(DeviceSharingTest, OpenEvent_Garbage_InvalidArgument) {
  IpcHandle handle;
  handle.fill(0x5A);
  EXPECT_EQ(device().OpenEvent(handle).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(DeviceSharingTest, Event_FollowsTheWorkersRecords) {
  const std::unique_ptr<WorkerMemory> memory = worker().Allocate(ShareKind::kIpcHandle, kBytes);
  const std::unique_ptr<WorkerEvent> event = Value(device().OpenEvent(worker().event()));
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(Value(event->Done()));
    worker().ReadLate(memory.get(), 0, 16);
    EXPECT_FALSE(Value(event->Done()));
    worker().Finish();
  }
}

// RELIABILITY.md W1: a store starts after what the worker computes. Without the event it reads what
// was there before: the test would notice if events did nothing.
TEST_F(DeviceSharingTest, Event_WorkersWrite_OnlyWhoAwaitsItSeesIt) {
  const std::unique_ptr<WorkerMemory> memory = worker().Allocate(ShareKind::kIpcHandle, kBytes);
  const std::unique_ptr<DeviceMapping> mapping = Value(device().Map(memory->Share()));
  const std::unique_ptr<WorkerEvent> event = Value(device().OpenEvent(worker().event()));
  for (const bool waits : {false, true, false, true}) {
    memory->Write(0, Filled(kBytes, 1));
    worker().Finish();
    const std::vector<std::byte> late = Filled(kBytes, 2);
    worker().WriteLate(memory.get(), 0, late);
    if (waits) Await(*event);
    EXPECT_TRUE(FromDevice(mapping->data(), kBytes) == Filled(kBytes, waits ? 2 : 1))
        << (waits ? "with" : "without") << " the event";
    worker().Finish();
  }
}

// RELIABILITY.md W2: a load starts after what the worker still reads of the block's old contents.
TEST_F(DeviceSharingTest, Event_WorkersRead_OnlyWhoAwaitsItLeavesItAlone) {
  const std::unique_ptr<WorkerMemory> memory = worker().Allocate(ShareKind::kIpcHandle, kBytes);
  const std::unique_ptr<DeviceMapping> mapping = Value(device().Map(memory->Share()));
  const std::unique_ptr<WorkerEvent> event = Value(device().OpenEvent(worker().event()));
  for (const bool waits : {false, true, false, true}) {
    memory->Write(0, Filled(kBytes, 1));
    worker().Finish();
    worker().ReadLate(memory.get(), 0, kBytes);
    if (waits) Await(*event);
    ToDevice(mapping->data(), Filled(kBytes, 2));
    EXPECT_TRUE(worker().Finish() == Filled(kBytes, waits ? 1 : 2))
        << (waits ? "with" : "without") << " the event";
  }
}

TEST_F(DeviceSharingTest, CreateCodec_ShapeThatDoesNotFit_AsSlabCodec) {
  const auto codec = device().CreateCodec({2, 2, 0, 1, 64, DType::kF16}, nullptr);
  EXPECT_EQ(codec.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(codec.status().message()), HasSubstr("layer_end is 2"));
}

TEST_F(DeviceSharingTest, Queues_OfBothKinds_WorkBesideEachOther) {
  const std::unique_ptr<DeviceQueue> other = Value(device().CreateQueue(false));
  const std::unique_ptr<MemorySpace> space = Value(device().CreateSpace(kBytes));
  std::byte* begin = space->Reserve(kBytes);
  ASSERT_TRUE(space->Commit(begin, kBytes));
  const std::vector<std::byte> bytes = Filled(kBytes, 6);
  EXPECT_EQ(other->CopyToDevice(begin, bytes), absl::OkStatus());
  EXPECT_EQ(other->Finish(), absl::OkStatus());
  EXPECT_TRUE(FromDevice(begin, kBytes) == bytes);
  space->Unreserve(begin, kBytes);
}

}  // namespace
}  // namespace fq
