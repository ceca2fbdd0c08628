// Workers that die while their memory is mapped here (RELIABILITY.md G4). Runs on a GPU, alone: it
// counts the memory of the whole GPU.
#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/testing/check_cuda.h"
#include "tests/testing/cuda_worker.h"

namespace fq {
namespace {

constexpr uint64_t kBytes = uint64_t{64} << 20;
constexpr uint64_t kDrift = uint64_t{16} << 20;

int Kills() {
  const char* kills = std::getenv("FQ_TEST_KILLS");
  return kills == nullptr ? 4 : std::atoi(kills);
}

uint64_t FreeBytes() {
  size_t free = 0, total = 0;
  Check(cudaMemGetInfo(&free, &total));
  return free;
}

class DeviceWorkerTest : public testing::TestWithParam<ShareKind> {};

TEST_P(DeviceWorkerTest, KilledWhileRead_QueueGoesOnAndMemoryComesBack) {
  const std::unique_ptr<Device> device = Value(OpenCudaDevice({}));
  const std::unique_ptr<DeviceQueue> queue = Value(device->CreateQueue(true));
  const std::unique_ptr<MemorySpace> space = Value(device->CreateSpace(kBytes));
  std::byte* own = space->Reserve(kBytes);
  ASSERT_TRUE(space->Commit(own, kBytes));
  std::vector<std::byte> host(kBytes);
  uint64_t before = 0;
  for (int i = 0; i <= Kills(); ++i) {
    if (i == 1) before = FreeBytes();  // the first round is for what the driver keeps
    CudaWorker worker;
    const std::unique_ptr<WorkerMemory> memory = worker.Allocate(GetParam(), kBytes);
    const std::unique_ptr<DeviceMapping> mapping = Value(device->Map(memory->Share()));
    const std::unique_ptr<WorkerEvent> event = Value(device->OpenEvent(worker.event()));
    memory->Write(0, std::vector<std::byte>(kBytes, std::byte{9}));
    for (int copy = 0; copy < 20; ++copy) {
      ASSERT_EQ(queue->CopyToHost(absl::MakeSpan(host), mapping->data()), absl::OkStatus());
    }
    worker.Kill();
    EXPECT_EQ(queue->Finish(), absl::OkStatus()) << "round " << i;
    // What was mapped stays readable until it is closed.
    ASSERT_EQ(queue->CopyToHost(absl::MakeSpan(host), mapping->data()), absl::OkStatus());
    EXPECT_EQ(queue->Finish(), absl::OkStatus());
    EXPECT_TRUE(host == std::vector<std::byte>(kBytes, std::byte{9}));
  }
  const uint64_t after = FreeBytes();
  std::printf("%d kills: %lld bytes of GPU memory fewer than before\n", Kills(),
              static_cast<long long>(before) - static_cast<long long>(after));
  EXPECT_LT(before, after + kDrift);
  space->Unreserve(own, kBytes);
}

// A stream that waits for such an event waits forever (driver 580), and only the host can give up.
TEST_P(DeviceWorkerTest, KilledBeforeItsEvent_NeverDoneAndTheQueueGoesOn) {
  const std::unique_ptr<Device> device = Value(OpenCudaDevice({}));
  const std::unique_ptr<DeviceQueue> queue = Value(device->CreateQueue(true));
  CudaWorker worker;
  const std::unique_ptr<WorkerMemory> memory = worker.Allocate(GetParam(), kBytes);
  const std::unique_ptr<DeviceMapping> mapping = Value(device->Map(memory->Share()));
  const std::unique_ptr<WorkerEvent> event = Value(device->OpenEvent(worker.event()));
  worker.WriteLate(memory.get(), 0, std::vector<std::byte>(16, std::byte{1}));
  worker.Kill();
  for (int i = 0; i < 20; ++i) {
    EXPECT_FALSE(Value(event->Done()));
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  std::vector<std::byte> host(16);
  EXPECT_EQ(queue->CopyToHost(absl::MakeSpan(host), mapping->data()), absl::OkStatus());
  EXPECT_EQ(queue->Finish(), absl::OkStatus());
}

INSTANTIATE_TEST_SUITE_P(Kinds, DeviceWorkerTest,
                         testing::Values(ShareKind::kIpcHandle, ShareKind::kFileDescriptor),
                         [](const auto& info) {
                           return info.param == ShareKind::kIpcHandle ? "handle" : "descriptor";
                         });

// Engines allocate what they like; the driver rounds.
TEST(DeviceWorker, OddLengths_MapWithTheLengthThatTheWorkerAskedFor) {
  const std::unique_ptr<Device> device = Value(OpenCudaDevice({}));
  CudaWorker worker;
  for (uint64_t bytes : {uint64_t{3} << 20, (uint64_t{5} << 20) + 512, uint64_t{100} << 20}) {
    const std::unique_ptr<WorkerMemory> memory = worker.Allocate(ShareKind::kIpcHandle, bytes);
    const auto mapping = device->Map(memory->Share());
    EXPECT_TRUE(mapping.ok()) << bytes << " bytes: " << mapping.status();
  }
}

}  // namespace
}  // namespace fq
