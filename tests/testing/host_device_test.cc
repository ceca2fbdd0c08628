// What the stand-in has beside a Device: faults, and memory that the host may not touch.
#include "tests/testing/host_device.h"

#include "gtest/gtest.h"
#include "tests/testing/guarded_memory.h"

namespace fq {
namespace {

TEST(HostDevice, FailNextFinish_OnceAndWithoutItsWork) {
  HostDevice device;
  HostWorkerMemory memory(ShareKind::kIpcHandle, 4096);
  const auto mapping = *device.Map(memory.Share());
  const auto queue = *device.CreateQueue(true);
  const std::vector<std::byte> bytes(4096, std::byte{1});
  device.FailNextFinish(absl::InternalError("injected"));
  EXPECT_TRUE(queue->CopyToDevice(mapping->data(), bytes).ok());
  EXPECT_EQ(queue->Finish().message(), "injected");
  EXPECT_EQ(memory.data()[0], std::byte{0});
  EXPECT_TRUE(queue->CopyToDevice(mapping->data(), bytes).ok());
  EXPECT_TRUE(queue->Finish().ok());
  EXPECT_EQ(memory.data()[0], std::byte{1});
}

TEST(HostDevice, Lose_EveryCallFails) {
  HostDevice device;
  HostWorkerMemory memory(ShareKind::kIpcHandle, 4096);
  const auto queue = *device.CreateQueue(true);
  device.Lose();
  EXPECT_EQ(queue->Finish().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(queue->CopyToDevice(nullptr, {}).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(device.Map(memory.Share()).status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(device.CreateSpace(1).status().code(), absl::StatusCode::kInternal);
}

TEST(HostDevice, Event_DoneFromCompleteToTheNextRecord) {
  HostDevice device;
  HostWorkerEvent event;
  const auto opened = *device.OpenEvent(event.handle());
  EXPECT_TRUE(*opened->Done());
  event.Record();
  EXPECT_FALSE(*opened->Done());
  event.Complete();
  EXPECT_TRUE(*opened->Done());
  device.Lose();
  EXPECT_EQ(opened->Done().status().code(), absl::StatusCode::kInternal);
}

TEST(HostDevice, Mappings_CountedUntilClosed) {
  HostDevice device;
  auto memory = std::make_unique<HostWorkerMemory>(ShareKind::kIpcHandle, 4096);
  auto mapping = *device.Map(memory->Share());
  EXPECT_EQ(device.open_mappings(), 1);
  memory.reset();  // the worker is gone; its memory is not
  EXPECT_NE(HostAddress(mapping->data(), 4096), nullptr);
  mapping.reset();
  EXPECT_EQ(device.open_mappings(), 0);
}

TEST(HostDevice, Spaces_TakeTheirBytesAndGiveThemBack) {
  HostDevice device(uint64_t{8} << 20);
  {
    const auto space = device.CreateSpace(uint64_t{6} << 20);
    EXPECT_EQ(device.free_bytes(), uint64_t{2} << 20);
    EXPECT_FALSE(device.CreateSpace(uint64_t{4} << 20).ok());
  }
  EXPECT_EQ(device.free_bytes(), uint64_t{8} << 20);
}

TEST(HostDeviceDeathTest, HostTouchesDeviceMemory_Ends) {
  HostDevice device;
  HostWorkerMemory memory(ShareKind::kIpcHandle, 4096);
  const auto mapping = *device.Map(memory.Share());
  EXPECT_DEATH(*const_cast<volatile std::byte*>(mapping->data()) = std::byte{1}, "");
  EXPECT_DEATH(HostAddress(mapping->data(), 8192), "not device memory");
}

}  // namespace
}  // namespace fq
