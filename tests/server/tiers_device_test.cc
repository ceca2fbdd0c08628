// Demotion and promotion on a GPU (make test-gpu): slabs that span granules of both memories go
// down while others are stored, come up again, and every byte is compared. Prints how fast.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/memory/ahead_space.h"
#include "server/tiers.h"
#include "tests/conformance/described_payload.h"
#include "tests/testing/check_cuda.h"

namespace fq {
namespace {

using conformance::Describe;
using conformance::Mismatch;

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr size_t kPrimaryBytes = 2700000, kRefinementBytes = 1300000;

SlabKey Key(uint32_t n) {
  SlabKey key;
  std::memcpy(key.block.data(), &n, sizeof(n));
  return key;
}

class TiersOnDevice : public testing::Test {
 protected:
  void Create(uint64_t host_bytes, uint64_t device_bytes) {
    TiersOptions options;
    options.host = {
        host_bytes, 16,
        CreateAheadSpace(device_->CreatePinnedSpace(host_bytes), {host_bytes, uint64_t{2} << 30})};
    options.device = StoreOptions{device_bytes, 16,
                                  CreateAheadSpace(device_->CreateSpace(device_bytes).value(),
                                                   {device_bytes, device_bytes / 4})};
    for (int i = 0; i < 2; ++i) {
      options.moves.push_back(device_->CreateQueue(false).value());
    }
    tiers_ = Tiers::Create(std::move(options)).value();
  }

  absl::Status Put(uint32_t n) {
    auto room =
        tiers_->Reserve(Tier::kDevice, Key(n), {n, 0, 0, 64}, kPrimaryBytes, kRefinementBytes);
    if (!room.ok()) return room.status();
    std::vector<std::byte> primary(kPrimaryBytes), refinement(kRefinementBytes);
    Describe({n, 1}, absl::MakeSpan(primary));
    Describe({n, 2}, absl::MakeSpan(refinement));
    absl::Status status = queue_->CopyToDevice(room->primary().data(), primary);
    status.Update(queue_->CopyToDevice(room->refinement().data(), refinement));
    status.Update(queue_->Finish());
    if (status.ok()) std::move(*room).Publish();
    return status;
  }

  std::vector<std::byte> Read(const Pin& pin, absl::Span<const std::byte> bytes) {
    if (pin.on_host()) return {bytes.begin(), bytes.end()};
    std::vector<std::byte> read(bytes.size());
    EXPECT_TRUE(queue_->CopyToHost(absl::MakeSpan(read), bytes.data()).ok());
    EXPECT_TRUE(queue_->Finish().ok());
    return read;
  }

  std::string Check(const Pin& pin, uint32_t n) {
    if (pin.primary().size() != kPrimaryBytes) return "primary of another size";
    if (pin.refinement().size() != kRefinementBytes) return "refinement of another size";
    std::string found = Mismatch({n, 1}, Read(pin, pin.primary()));
    return found.empty() ? Mismatch({n, 2}, Read(pin, pin.refinement())) : found;
  }

  void WaitForDemotion() {
    const StoreStats device = tiers_->Stats().device;
    for (int i = 0; i < 5000; ++i) {
      if (tiers_->device()->used_bytes() <= device.capacity_bytes * 9 / 10) return;
      absl::SleepFor(absl::Milliseconds(1));
    }
    FAIL() << "the device stays past its high watermark";
  }

  const std::unique_ptr<Device> device_ = OpenCudaDevice({0, "", 100, false}).value();
  const std::unique_ptr<DeviceQueue> queue_ = device_->CreateQueue(true).value();
  std::unique_ptr<Tiers> tiers_;
};

TEST_F(TiersOnDevice, EverySlabIsFoundWhole_WhereverItIs) {
  Create(1024 * kMiB, 256 * kMiB);
  constexpr uint32_t kSlabs = 200;  // 800 MB
  for (uint32_t n = 0; n < kSlabs; ++n) {
    ASSERT_TRUE(Put(n).ok());
    WaitForDemotion();
  }
  const TierStats stats = tiers_->Stats();
  EXPECT_GT(stats.demoted_slabs, 100u);
  EXPECT_EQ(stats.host.evicted_slabs + stats.device.evicted_slabs, 0u);
  EXPECT_EQ(stats.failed_demotions, 0u);
  for (uint32_t n = 0; n < kSlabs; ++n) {
    const Pin pin = tiers_->Find(Key(n));
    ASSERT_TRUE(pin) << n;
    EXPECT_EQ(Check(pin, n), "") << n;
  }
  for (uint32_t n = 0; n < 20; ++n) {  // up again
    const Pin pin = tiers_->Find(Key(n));
    ASSERT_TRUE(pin.on_host()) << n;
    auto room = tiers_->ReserveCopy(pin);
    ASSERT_TRUE(room.ok()) << room.status();
    ASSERT_TRUE(queue_->CopyToDevice(room->primary().data(), pin.primary()).ok());
    ASSERT_TRUE(queue_->CopyToDevice(room->refinement().data(), pin.refinement()).ok());
    ASSERT_TRUE(queue_->Finish().ok());
    const Pin copy = std::move(*room).Publish();
    EXPECT_FALSE(copy.on_host());
    EXPECT_EQ(Check(copy, n), "") << n;
  }
  EXPECT_TRUE(tiers_->CheckInvariants().ok()) << tiers_->CheckInvariants();
}

// Into host memory that is pinned meanwhile, that was pinned before, and that is full.
TEST_F(TiersOnDevice, HowFastSlabsGoDown) {
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);  // as in a node
  constexpr uint64_t kHostBytes = 3072 * kMiB, kDeviceBytes = 2048 * kMiB;
  Create(kHostBytes, kDeviceBytes);
  uint32_t stored = 0;
  const auto fill = [&] {  // just past the high watermark
    while (tiers_->device()->used_bytes() <= kDeviceBytes * 9 / 10) {
      tiers_->Reserve(Tier::kDevice, Key(stored++), SlabTag{}, kPrimaryBytes, kRefinementBytes)
          .value()
          .Publish();
    }
  };
  for (int round = 0; round < 24; ++round) {
    if (round > 0) absl::SleepFor(absl::Milliseconds(100));  // for what is pinned ahead
    const TierStats before = tiers_->Stats();
    fill();
    const auto since = std::chrono::steady_clock::now();
    while (tiers_->device()->used_bytes() > kDeviceBytes * 8 / 10) {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - since;
    const TierStats after = tiers_->Stats();
    const auto bytes = static_cast<double>(after.demoted_bytes - before.demoted_bytes);
    std::printf("times: demotion %d: %.0f MB at %.1f GB/s, the host had %.0f %%, %llu evicted\n",
                round, bytes / 1e6, bytes / took.count() / 1e9,
                100 * static_cast<double>(before.host.used_bytes) / kHostBytes,
                static_cast<unsigned long long>(
                    after.host.evicted_slabs + after.host.dropped_refinements -
                    before.host.evicted_slabs - before.host.dropped_refinements));
  }
}

}  // namespace
}  // namespace fq
