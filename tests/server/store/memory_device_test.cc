// VmmSpace and PinnedSpace on a GPU (make test-gpu), plain and ahead: bytes, exhaustion, sharing
// with another process, and the store over both. Prints how long their calls take.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "kernels/memory/ahead_space.h"
#include "kernels/memory/driver_call.h"
#include "kernels/memory/pinned_space.h"
#include "kernels/memory/vmm_space.h"
#include "tests/conformance/tier_stress.h"
#include "tests/conformance/tier_suite.h"
#include "tests/server/store/device_store.h"

namespace fq {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr int kImportedFd = 40;

double Milliseconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - since)
      .count();
}

uint64_t FreeBytes() {
  size_t free_bytes = 0, total_bytes = 0;
  Check(cudaMemGetInfo(&free_bytes, &total_bytes));
  return free_bytes;
}

void Fill(std::byte* device, int value, size_t bytes) {
  Check(cudaMemset(device, value, bytes));
  Check(cudaStreamSynchronize(nullptr));
}

// Whether every byte has that value.
bool Holds(const std::byte* device, int value, size_t bytes) {
  std::vector<std::byte> host(bytes);
  Check(cudaMemcpy(host.data(), device, bytes, cudaMemcpyDeviceToHost));
  for (std::byte byte : host) {
    if (byte != static_cast<std::byte>(value)) return false;
  }
  return true;
}

TEST(VmmSpaceOnDevice, Granules_KeepTheirBytes_WhileOthersComeAndGo) {
  const auto space = CreateVmmSpace(0, 32 * kMiB).value();
  const size_t granule = space->granule_bytes();
  const size_t all = space->granules();
  std::byte* first = space->Reserve(all * granule);
  std::byte* second = space->Reserve(all * granule);
  ASSERT_TRUE(first != nullptr && second != nullptr);
  ASSERT_TRUE(space->Commit(first, all * granule));
  for (size_t i = 0; i < all; ++i) Fill(first + i * granule, static_cast<int>(i + 1), granule);
  for (size_t i = 0; i < all; i += 2) space->Decommit(first + i * granule, granule);
  EXPECT_EQ(space->free_granules(), all / 2);
  ASSERT_TRUE(space->Commit(second, all / 2 * granule));  // of what was first's
  Fill(second, 200, all / 2 * granule);
  for (size_t i = 1; i < all; i += 2) {
    EXPECT_TRUE(Holds(first + i * granule, static_cast<int>(i + 1), granule)) << i;
  }
  EXPECT_TRUE(Holds(second, 200, all / 2 * granule));  // one copy over many granules
  EXPECT_FALSE(space->Commit(first, granule));
  space->Unreserve(second, all * granule);
  EXPECT_TRUE(space->Commit(first, granule));
  space->Unreserve(first, all * granule);
  EXPECT_EQ(space->free_granules(), all);
}

TEST(VmmSpaceOnDevice, Commit_FromAThreadThatNeverSawTheDevice) {
  const auto space = CreateVmmSpace(0, 8 * kMiB).value();
  std::byte* begin = nullptr;
  bool committed = false;
  std::thread([&] {
    begin = space->Reserve(8 * kMiB);
    committed = space->Commit(begin, 8 * kMiB);
  }).join();
  ASSERT_TRUE(committed);
  Fill(begin, 3, 8 * kMiB);
  std::thread([&] { space->Decommit(begin, 4 * kMiB); }).join();
  EXPECT_TRUE(Holds(begin + 4 * kMiB, 3, 4 * kMiB));
}

TEST(VmmSpaceOnDevice, AskedForMoreThanThereIs_NamesBothAndTakesNothing) {
  const uint64_t before = FreeBytes();
  const auto space = CreateVmmSpace(0, uint64_t{1} << 40);
  EXPECT_TRUE(absl::IsResourceExhausted(space.status())) << space.status();
  std::printf("%s\n", space.status().ToString().c_str());
  EXPECT_NE(space.status().message().find(std::to_string(before)), std::string::npos);
  EXPECT_LE(before - FreeBytes() + 16 * kMiB, 32 * kMiB);
}

TEST(VmmSpaceOnDevice, Destroyed_GivesEverythingBack) {
  { const auto warm = CreateVmmSpace(0, 64 * kMiB).value(); }
  const uint64_t before = FreeBytes();
  for (int round = 0; round < 3; ++round) {
    const auto space = CreateVmmSpace(0, 1024 * kMiB).value();
    std::byte* begin = space->Reserve(1024 * kMiB);
    ASSERT_TRUE(space->Commit(begin, 1024 * kMiB));
    Fill(begin, round, 1024 * kMiB);
    EXPECT_LE(FreeBytes(), before - 1024 * kMiB);
  }
  EXPECT_LE(before - FreeBytes() + 16 * kMiB, 32 * kMiB);  // within 16 MiB either way
}

// What another process, which never saw this one's CUDA, made of the granule; see Import.
int ImportElsewhere(const VmmSpace& space, const std::byte* granule) {
  const int fd = space.Export(granule).value();
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, fd, kImportedFd);
  std::string program = "/proc/self/exe", flag = "--import",
              bytes = std::to_string(space.granule_bytes());
  char* arguments[] = {program.data(), flag.data(), bytes.data(), nullptr};
  pid_t child = 0;
  const int spawned = posix_spawn(&child, program.c_str(), &actions, nullptr, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  close(fd);
  int status = -1;
  return spawned == 0 && waitpid(child, &status, 0) == child ? status : -1;
}

TEST(VmmSpaceOnDevice, Exported_IsTheSameMemoryElsewhere) {
  const auto space = CreateVmmSpace(0, 8 * kMiB).value();
  const size_t granule = space->granule_bytes();
  std::byte* begin = space->Reserve(2 * granule);
  ASSERT_TRUE(space->Commit(begin, 2 * granule));
  Fill(begin, 1, granule);
  Fill(begin + granule, 77, granule);
  EXPECT_EQ(ImportElsewhere(*space, begin + granule), 0);
  EXPECT_TRUE(Holds(begin, 1, granule));
  EXPECT_TRUE(Holds(begin + granule, 78, granule));  // the child's
}

// The child of ImportElsewhere: 0 when it found 77 everywhere.
int Import(size_t bytes) {
  Check(cudaSetDevice(0));
  Check(cudaFree(nullptr));
  CUmemGenericAllocationHandle handle{};
  const auto import = Value(DriverFunction<decltype(cuMemImportFromShareableHandle)>(
      "cuMemImportFromShareableHandle", 10020));
  Check(DriverStatus(import(&handle, reinterpret_cast<void*>(static_cast<intptr_t>(kImportedFd)),
                            CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
                     "cuMemImportFromShareableHandle"));
  CUdeviceptr address = 0;
  Check(DriverStatus(Value(DriverFunction<decltype(cuMemAddressReserve)>(
                         "cuMemAddressReserve", 10020))(&address, bytes, 0, 0, 0),
                     "cuMemAddressReserve"));
  Check(DriverStatus(
      Value(DriverFunction<decltype(cuMemMap)>("cuMemMap", 10020))(address, bytes, 0, handle, 0),
      "cuMemMap"));
  CUmemAccessDesc access{};
  access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  Check(DriverStatus(Value(DriverFunction<decltype(cuMemSetAccess)>("cuMemSetAccess", 10020))(
                         address, bytes, &access, 1),
                     "cuMemSetAccess"));
  auto* data = reinterpret_cast<std::byte*>(address);
  if (!Holds(data, 77, bytes)) return 1;
  Fill(data, 78, bytes);
  return 0;
}

TEST(VmmSpaceOnDevice, Times) {
  for (uint64_t bytes : {2048 * kMiB, 8192 * kMiB, 32768 * kMiB}) {
    auto since = std::chrono::steady_clock::now();
    const auto space = CreateVmmSpace(0, bytes).value();
    const double create_ms = Milliseconds(since);
    const size_t granule = space->granule_bytes();
    const size_t count = std::min<size_t>(space->granules(), 512);
    std::byte* begin = space->Reserve(count * granule);
    since = std::chrono::steady_clock::now();
    for (size_t i = 0; i < count; ++i) ASSERT_TRUE(space->Commit(begin + i * granule, granule));
    const double single_ms = Milliseconds(since);
    since = std::chrono::steady_clock::now();
    for (size_t i = 0; i < count; ++i) space->Decommit(begin + i * granule, granule);
    const double decommit_ms = Milliseconds(since);
    since = std::chrono::steady_clock::now();
    ASSERT_TRUE(space->Commit(begin, count * granule));
    const double together_ms = Milliseconds(since);
    std::printf(
        "times: %zu granules of %zu MiB: create %.1f ms; of one granule: commit %.1f us, decommit "
        "%.1f us, commit of %zu together %.1f us\n",
        space->granules(), granule / kMiB, create_ms, 1000 * single_ms / count,
        1000 * decommit_ms / count, count, 1000 * together_ms / count);
  }
}

// What the thread mapped is had as it is, works as what a Commit mapped, and goes to another
// reservation when that needs it.
TEST(VmmSpaceOnDevice, MappedAhead_IsHad_UntilAnotherNeedsIt) {
  constexpr size_t kCount = 64;
  auto plain = CreateVmmSpace(0, 2048 * kMiB).value();
  const VmmSpace& vmm = *plain;
  const size_t granule = vmm.granule_bytes(), all = vmm.granules();
  ASSERT_EQ(all, 4 * kCount);
  const auto space = CreateAheadSpace(std::move(plain), {2048 * kMiB, 2048 * kMiB});
  std::byte* first = space->Reserve(all * granule);
  ASSERT_TRUE(space->Commit(first, kCount * granule));
  while (vmm.free_granules() > 0) std::this_thread::yield();  // or this test has failed
  auto since = std::chrono::steady_clock::now();
  for (size_t i = kCount; i < 2 * kCount; ++i) {
    ASSERT_TRUE(space->Commit(first + i * granule, granule));
  }
  const double had_ms = Milliseconds(since);
  for (size_t i = 0; i < 2 * kCount; ++i) Fill(first + i * granule, static_cast<int>(i), granule);
  EXPECT_EQ(ImportElsewhere(vmm, first + 77 * granule), 0);
  std::byte* second = space->Reserve(all * granule);
  since = std::chrono::steady_clock::now();
  for (size_t i = 0; i < 2 * kCount; ++i) {
    ASSERT_TRUE(space->Commit(second + i * granule, granule));
  }
  const double given_ms = Milliseconds(since);
  EXPECT_FALSE(space->Commit(second + 2 * kCount * granule, granule));
  Fill(second, 200, 2 * kCount * granule);
  for (size_t i = 0; i < 2 * kCount; ++i) {
    EXPECT_TRUE(Holds(first + i * granule, i == 77 ? 78 : static_cast<int>(i), granule)) << i;
  }
  EXPECT_TRUE(Holds(second, 200, 2 * kCount * granule));
  std::printf(
      "times: commit of a granule of %zu MiB mapped ahead %.1f us, of one that was ahead elsewhere "
      "%.1f us\n",
      granule / kMiB, 1000 * had_ms / kCount, 1000 * given_ms / (2 * kCount));
  space->Unreserve(first, all * granule);
  space->Unreserve(second, all * granule);
  EXPECT_EQ(vmm.free_granules(), all);
}

TEST(PinnedSpaceOnDevice, CopiesOverGranuleBounds_KeepTheirBytes) {
  const auto pinned = CreatePinnedSpace(0, 64 * kMiB);
  const auto device = CreateVmmSpace(0, 64 * kMiB).value();
  const size_t granule = pinned->granule_bytes();
  std::byte* host = pinned->Reserve(4 * granule);
  std::byte* on_device = device->Reserve(64 * kMiB);
  auto since = std::chrono::steady_clock::now();
  ASSERT_TRUE(pinned->Commit(host, 3 * granule));
  const double commit_ms = Milliseconds(since);
  ASSERT_TRUE(device->Commit(on_device, 64 * kMiB));
  cudaPointerAttributes attributes{};
  Check(cudaPointerGetAttributes(&attributes, host + 2 * granule));
  EXPECT_EQ(attributes.type, cudaMemoryTypeHost);
  cudaStream_t stream = nullptr;
  Check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const size_t bytes = 2 * granule, from = granule / 2;
  const auto copy = [&](std::byte* to, const std::byte* source) {
    Check(ForEachPinnedPart(host + from, bytes, [&](size_t at, size_t part) {
      Check(cudaMemcpyAsync(to + at, source + at, part, cudaMemcpyDefault, stream));
      return absl::OkStatus();
    }));
  };
  Fill(on_device, 5, 64 * kMiB);
  copy(host + from, on_device + 4096);
  Check(cudaStreamSynchronize(stream));
  for (size_t i = 0; i < bytes; ++i) ASSERT_EQ(host[from + i], std::byte{5}) << i;
  std::memset(host + from, 6, bytes);
  copy(on_device + 8192, host + from);
  Check(cudaStreamSynchronize(stream));
  EXPECT_TRUE(Holds(on_device + 8192, 6, bytes));
  EXPECT_TRUE(Holds(on_device, 5, 8192));
  since = std::chrono::steady_clock::now();
  for (int i = 0; i < 20; ++i) copy(host + from, on_device);
  Check(cudaStreamSynchronize(stream));
  const double copy_ms = Milliseconds(since);
  since = std::chrono::steady_clock::now();
  pinned->Decommit(host, granule);
  const double decommit_ms = Milliseconds(since);
  std::printf(
      "times: pinned granule of %zu MiB: commit %.2f ms, decommit %.2f ms; to host %.1f GB/s\n",
      static_cast<size_t>(granule / kMiB), commit_ms / 3, decommit_ms,
      20 * static_cast<double>(bytes) / copy_ms / 1e6);
  Check(cudaStreamDestroy(stream));
  pinned->Unreserve(host, 4 * granule);
}

// Pins memory by `threads`, a granule at a time, while another thread copies a little all the time.
// `fill`: each gets the memory of its granule before it pins that.
void PrintPinning(bool fill, size_t threads) {
  constexpr size_t kGranules = 64, kBytes = kGranules * kPinnedGranuleBytes;
  const auto space = CreatePinnedSpace(0, kPinnedGranuleBytes);
  std::byte* host = space->Reserve(kBytes);
  std::byte* own = space->Reserve(kPinnedGranuleBytes);
  ASSERT_TRUE(space->Commit(own, kPinnedGranuleBytes));
  void* on_device = nullptr;
  Check(cudaMalloc(&on_device, 4096));
  std::atomic<bool> done{false};
  double longest_ms = 0, copies_ms = 0;
  int copies = 0;
  std::thread copier([&] {
    for (; !done; ++copies) {
      const auto begin = std::chrono::steady_clock::now();
      Check(cudaMemcpy(on_device, own, 4096, cudaMemcpyHostToDevice));
      longest_ms = std::max(longest_ms, Milliseconds(begin));
      copies_ms += Milliseconds(begin);
    }
  });
  const auto since = std::chrono::steady_clock::now();
  std::vector<std::thread> pinners;
  for (size_t thread = 0; thread < threads; ++thread) {
    pinners.emplace_back([&, thread] {
      for (size_t i = thread; i < kGranules; i += threads) {
        std::byte* granule = host + i * kPinnedGranuleBytes;
        if (fill) madvise(granule, kPinnedGranuleBytes, 23);  // MADV_POPULATE_WRITE
        Check(cudaHostRegister(granule, kPinnedGranuleBytes, cudaHostRegisterPortable));
      }
    });
  }
  for (std::thread& pinner : pinners) pinner.join();
  const double pin_ms = Milliseconds(since);
  done = true;
  copier.join();
  std::printf(
      "times: pinning by %zu threads%s: %.2f ms a granule; copies of 4 KiB meanwhile %.0f us, at "
      "most %.0f\n",
      threads, fill ? " that fill" : "", pin_ms / kGranules, 1000 * copies_ms / copies,
      1000 * longest_ms);
  for (size_t i = 0; i < kGranules; ++i) Check(cudaHostUnregister(host + i * kPinnedGranuleBytes));
  Check(cudaFree(on_device));
  space->Unreserve(own, kPinnedGranuleBytes);
  space->Unreserve(host, kBytes);
}

TEST(PinnedSpaceOnDevice, HowFastMemoryIsPinned) {
  for (const bool fill : {false, true}) {
    for (const size_t threads : {1, 2, 4, 8}) PrintPinning(fill, threads);
  }
}

// What was pinned ahead is had at once.
TEST(PinnedSpaceOnDevice, CommitOfWhatIsPinnedAhead) {
  constexpr size_t kGranules = 64;
  const auto space =
      CreateAheadSpace(CreatePinnedSpace(0, 2048 * kMiB), {2048 * kMiB, 1024 * kMiB});
  std::byte* host = space->Reserve(2048 * kMiB);
  std::this_thread::sleep_for(std::chrono::seconds(1));
  const auto since = std::chrono::steady_clock::now();
  ASSERT_TRUE(space->Commit(host, kGranules * kPinnedGranuleBytes));
  std::printf("times: commit of a granule pinned ahead: %.3f ms\n",
              Milliseconds(since) / kGranules);
  cudaPointerAttributes attributes{};
  Check(cudaPointerGetAttributes(&attributes, host + 63 * kPinnedGranuleBytes));
  EXPECT_EQ(attributes.type, cudaMemoryTypeHost);
  space->Unreserve(host, 2048 * kMiB);
}

}  // namespace

namespace conformance {
namespace {

struct DeviceTier {
  static constexpr size_t kScale = 32;  // slabs of one granule of 2 MiB
  static std::unique_ptr<DeviceStore> Make(uint64_t capacity_bytes) {
    return std::make_unique<DeviceStore>(
        Store::Create({capacity_bytes, 16,
                       CreateAheadSpace(CreateVmmSpace(0, capacity_bytes).value(),
                                        {capacity_bytes, capacity_bytes / 4})})
            .value());
  }
};

struct PinnedTier {
  static constexpr size_t kScale = 256;  // slabs of one granule of 16 MiB
  static std::unique_ptr<Store> Make(uint64_t capacity_bytes) {
    return Store::Create({capacity_bytes, 16,
                          CreateAheadSpace(CreatePinnedSpace(0, capacity_bytes),
                                           {capacity_bytes, capacity_bytes / 2})})
        .value();
  }
};

using TiersOnDevice = testing::Types<DeviceTier, PinnedTier>;
INSTANTIATE_TYPED_TEST_SUITE_P(OnDevice, TierSuite, TiersOnDevice);

TEST(StressOnDevice, DeviceMemory_FarOverCapacity_StaysWhole) {
  StressShape shape;
  shape.scale = 64;
  shape.operations_per_thread = 400;
  shape.capacity_bytes = 32 * kMiB;
  const auto store = DeviceTier::Make(shape.capacity_bytes);
  StressTier(*store, shape);
}

TEST(StressOnDevice, PinnedMemory_FarOverCapacity_StaysWhole) {
  StressShape shape;
  shape.scale = 256;
  shape.operations_per_thread = 200;
  shape.capacity_bytes = 160 * kMiB;
  const auto store = PinnedTier::Make(shape.capacity_bytes);
  StressTier(*store, shape);
}

}  // namespace
}  // namespace conformance
}  // namespace fq

int main(int argc, char** argv) {
  if (argc == 3 && std::string(argv[1]) == "--import") {
    return fq::Import(std::strtoull(argv[2], nullptr, 10));
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
