// Shares of the multiprocessors, and a device that is lost. Runs on a GPU.
#include <bitset>
#include <cstdio>
#include <cstdlib>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/sm_share.h"
#include "tests/testing/check_cuda.h"

namespace fq {
namespace {

// Marks the multiprocessor that it runs on; long enough that blocks spread.
__global__ void MarkMultiprocessor(int* marks) {
  int id;
  asm volatile("mov.u32 %0, %smid;" : "=r"(id));
  marks[id] = 1;
  __nanosleep(20000);
}

__global__ void TouchNothing() { *reinterpret_cast<volatile int*>(8) = 1; }

constexpr int kMostMultiprocessors = 1024;

int CountMultiprocessors(cudaStream_t stream) {
  int* marks = nullptr;
  Check(cudaMallocManaged(&marks, kMostMultiprocessors * sizeof(int)));
  Check(cudaMemset(marks, 0, kMostMultiprocessors * sizeof(int)));
  MarkMultiprocessor<<<20000, 1024, 0, stream>>>(marks);
  Check(cudaGetLastError());
  Check(cudaStreamSynchronize(stream));
  int count = 0;
  for (int i = 0; i < kMostMultiprocessors; ++i) count += marks[i];
  Check(cudaFree(marks));
  return count;
}

TEST(SmShare, Stream_RunsOnItsMultiprocessorsOnly) {
  Check(cudaSetDevice(0));
  int all = 0;
  Check(cudaDeviceGetAttribute(&all, cudaDevAttrMultiProcessorCount, 0));
  cudaStream_t whole;
  Check(cudaStreamCreate(&whole));
  EXPECT_EQ(CountMultiprocessors(whole), all);
  Check(cudaStreamDestroy(whole));
  for (int percent : {10, 25, 50, 90}) {
    const std::unique_ptr<const SmShare> share = Value(CreateSmShare(percent));
    std::printf("%d %%: %d of %d multiprocessors\n", percent, share->multiprocessors(), all);
    EXPECT_GE(100 * share->multiprocessors(), percent * all);
    EXPECT_LT(share->multiprocessors(), percent * all / 100 + 17);
    const cudaStream_t stream = Value(share->CreateStream(0));
    EXPECT_EQ(CountMultiprocessors(stream), share->multiprocessors());
    Check(cudaStreamDestroy(stream));
  }
}

TEST(CudaDevice, BackgroundPercent_BackgroundQueueWorks) {
  CudaDeviceOptions options;
  options.background_percent = 25;
  const std::unique_ptr<Device> device = Value(OpenCudaDevice(options));
  const std::unique_ptr<MemorySpace> space = Value(device->CreateSpace(uint64_t{2} << 20));
  std::byte* memory = space->Reserve(uint64_t{2} << 20);
  ASSERT_TRUE(space->Commit(memory, uint64_t{2} << 20));
  const std::vector<std::byte> bytes(1000, std::byte{7});
  std::vector<std::byte> back(1000);
  for (bool urgent : {false, true}) {
    const std::unique_ptr<DeviceQueue> queue = Value(device->CreateQueue(urgent));
    Check(queue->CopyToDevice(memory, bytes));
    Check(queue->CopyToHost(absl::MakeSpan(back), memory));
    Check(queue->Finish());
    EXPECT_TRUE(back == bytes);
  }
  space->Unreserve(memory, uint64_t{2} << 20);
}

TEST(CudaDevice, ByUuid_TheSameDevice) {
  const std::unique_ptr<Device> device = Value(OpenCudaDevice({}));
  CudaDeviceOptions options;
  char name[64];
  const auto& id = device->info().uuid;
  std::snprintf(name, sizeof(name),
                "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", id[0],
                id[1], id[2], id[3], id[4], id[5], id[6], id[7], id[8], id[9], id[10], id[11],
                id[12], id[13], id[14], id[15]);
  options.uuid = name;
  EXPECT_EQ(Value(OpenCudaDevice(options))->info().uuid, id);
  options.uuid = "GPU-00000000-0000-0000-0000-000000000000";
  EXPECT_EQ(OpenCudaDevice(options).status().code(), absl::StatusCode::kNotFound);
}

// RELIABILITY.md G7: every call says so, none ends the process.
int CallLostDevice() {
  const std::unique_ptr<Device> device = Value(OpenCudaDevice({}));
  const std::unique_ptr<DeviceQueue> queue = Value(device->CreateQueue(true));
  const std::unique_ptr<MemorySpace> space = Value(device->CreateSpace(uint64_t{2} << 20));
  TouchNothing<<<1, 1>>>();
  cudaDeviceSynchronize();
  std::vector<std::byte> bytes(16);
  int wrong = 0;
  const auto expect_internal = [&](const char* call, const absl::Status& status) {
    std::fprintf(stderr, "%s: %s\n", call, status.ToString().c_str());
    wrong += absl::IsInternal(status) ? 0 : 1;
  };
  expect_internal("Finish", queue->Finish());
  expect_internal("CopyToHost", queue->CopyToHost(absl::MakeSpan(bytes), bytes.data()));
  expect_internal("CreateQueue", device->CreateQueue(false).status());
  expect_internal("CreateSpace", device->CreateSpace(uint64_t{2} << 20).status());
  expect_internal("CreateCodec",
                  device->CreateCodec({0, 1, 0, 1, 64, DType::kF16}, nullptr).status());
  expect_internal("Map", device->Map({}).status());
  expect_internal("OpenEvent", device->OpenEvent({}).status());
  return wrong;
}

TEST(CudaDeviceDeathTest, LostDevice_InternalFromEveryCall) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(std::exit(CallLostDevice()), testing::ExitedWithCode(0), "Finish: INTERNAL");
}

}  // namespace
}  // namespace fq
