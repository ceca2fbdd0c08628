// Two tiers with host memory in the GPU's place; whoever reads device memory directly is killed.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "server/tiers.h"
#include "tests/conformance/described_payload.h"
#include "tests/testing/eventually.h"
#include "tests/testing/hooked_queue.h"
#include "tests/testing/host_device.h"

namespace fq {

inline constexpr size_t kBytes = size_t{2} << 20;      // a granule of the device
inline constexpr uint64_t kDeviceBytes = 20 * kBytes;  // high watermark 18 slabs, low 16

inline SlabKey Key(uint32_t n) {
  SlabKey key;
  std::memcpy(key.block.data(), &n, sizeof(n));
  return key;
}

class TiersDemotion : public testing::Test {
 protected:
  ~TiersDemotion() override { released_.Notify(); }

  void Create(uint64_t host_bytes) { Create(host_bytes, kDeviceBytes, TiersOptions()); }
  void Create(uint64_t host_bytes, uint64_t device_bytes, TiersOptions options) {
    options.host = {host_bytes, 4};
    options.device = StoreOptions{device_bytes, 4, device_.CreateSpace(device_bytes).value()};
    for (int i = 0; i < 2; ++i) {
      options.moves.push_back(
          std::make_unique<HookedQueue>(device_.CreateQueue(false).value(), [this] {
            if (while_copied_) while_copied_();
          }));
    }
    tiers_ = Tiers::Create(std::move(options)).value();
  }

  // Through a queue, as PagePath does.
  absl::Status Fill(DeviceQueue& queue, Reservation& room, conformance::Description description) {
    std::vector<std::byte> primary(room.primary().size()), refinement(room.refinement().size());
    conformance::Describe(description, absl::MakeSpan(primary));
    conformance::Describe(description, absl::MakeSpan(refinement));
    absl::Status status = queue.CopyToDevice(room.primary().data(), primary);
    if (!refinement.empty()) {
      status.Update(queue.CopyToDevice(room.refinement().data(), refinement));
    }
    status.Update(queue.Finish());
    return status;
  }

  absl::Status Put(DeviceQueue& queue, uint32_t n, uint16_t version, size_t refinement_bytes,
                   MonotonicTime wait_until = {}) {
    auto room =
        tiers_->Reserve(Tier::kDevice, Key(n), {n, 0, 0, 64}, kBytes, refinement_bytes, wait_until);
    if (!room.ok()) return room.status();
    absl::Status status = Fill(queue, *room, {n, version});
    if (status.ok()) std::move(*room).Publish();
    return status;
  }
  absl::Status Put(uint32_t n) { return Put(*queue_, n, 1, 0); }
  absl::Status PutOrWait(uint32_t n) {
    return Put(*queue_, n, 1, 0, SteadyNow() + std::chrono::hours(1));
  }

  static std::vector<std::byte> Read(DeviceQueue& queue, const Pin& pin,
                                     absl::Span<const std::byte> bytes) {
    std::vector<std::byte> read(bytes.begin(), pin.on_host() ? bytes.end() : bytes.begin());
    if (pin.on_host() || bytes.empty()) return read;
    read.resize(bytes.size());
    EXPECT_TRUE(queue.CopyToHost(absl::MakeSpan(read), bytes.data()).ok());
    EXPECT_TRUE(queue.Finish().ok());
    return read;
  }

  // Empty when both extents are those of slab n.
  static std::string Check(DeviceQueue& queue, const Pin& pin, uint32_t n) {
    const std::vector<std::byte> primary = Read(queue, pin, pin.primary());
    const conformance::Description description{n, conformance::VersionOf(primary)};
    std::string found = conformance::Mismatch(description, primary);
    return found.empty() ? conformance::Mismatch(description, Read(queue, pin, pin.refinement()))
                         : found;
  }

  // No copy is done before the end of the test.
  void HoldCopies() {
    while_copied_ = [this] { released_.WaitForNotification(); };
  }
  // For while_copied_: until somebody has waited for room, or the test ends.
  void AwaitSomebodyWaiting() {
    Eventually([this] { return tiers_->Stats().waits > 0 || released_.HasBeenNotified(); });
  }

  void WaitForLowWatermark() {
    ASSERT_TRUE(
        Eventually([&] { return tiers_->device()->used_bytes() <= kDeviceBytes * 8 / 10; }));
  }

  HostDevice device_;
  absl::Notification released_;
  // Set it while nothing is demoted. It is called until tiers_ has gone, which is after the test's
  // own variables.
  std::function<void()> while_copied_;
  const std::unique_ptr<DeviceQueue> queue_ = device_.CreateQueue(true).value();
  std::unique_ptr<Tiers> tiers_;
};

}  // namespace fq
