// Slabs that move to the host as the device fills.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/server/tiers_fixture.h"

namespace fq {
namespace {

using conformance::Describe;
using conformance::Description;
using conformance::Mismatch;

TEST_F(TiersDemotion, Create_BadWatermarks_NamesBothValues) {
  TiersOptions options;
  options.low_watermark = 0.95;
  EXPECT_EQ(Tiers::Create(std::move(options)).status().message(),
            "low_watermark is 0.95, high_watermark is 0.9, must be 0 < low <= high <= 1");
}

TEST_F(TiersDemotion, PastTheHighWatermark_TheColdestGoDownToTheLowOne) {
  Create(64 * kBytes);
  for (uint32_t n = 0; n < 18; ++n) ASSERT_TRUE(Put(n).ok());
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_EQ(tiers_->Stats().demoted_slabs, 0u);  // at the watermark, not past it
  EXPECT_TRUE(tiers_->Find(Key(0)));             // a use
  ASSERT_TRUE(Put(18).ok());
  WaitForLowWatermark();
  const TierStats stats = tiers_->Stats();
  EXPECT_EQ(stats.demoted_slabs, 3u);
  EXPECT_EQ(stats.demoted_bytes, 3 * kBytes);
  EXPECT_EQ(stats.host.slabs, 3u);
  EXPECT_EQ(stats.device.slabs, 16u);
  EXPECT_EQ(stats.device.evicted_slabs, 0u);
  for (uint32_t n = 0; n < 19; ++n) {
    const Pin pin = tiers_->Find(Key(n));
    ASSERT_TRUE(pin) << n;
    EXPECT_EQ(pin.on_host(), n >= 1 && n <= 3) << n;
    EXPECT_EQ(pin.tag().block_index, n);
    EXPECT_EQ(Check(*queue_, pin, n), "") << n;
  }
  EXPECT_TRUE(tiers_->CheckInvariants().ok()) << tiers_->CheckInvariants();
}

TEST_F(TiersDemotion, Refinements_GoDownToo) {
  Create(64 * kBytes);
  for (uint32_t n = 0; n < 10; ++n) ASSERT_TRUE(Put(*queue_, n, 7, kBytes).ok());
  WaitForLowWatermark();
  const Pin pin = tiers_->Find(Key(0));
  EXPECT_TRUE(pin.on_host());
  EXPECT_EQ(pin.refinement().size(), kBytes);
  EXPECT_EQ(Check(*queue_, pin, 0), "");
}

TEST_F(TiersDemotion, OrderOfUse_IsKept) {
  Create(3 * kBytes);
  for (uint32_t n = 0; n < 19; ++n) ASSERT_TRUE(Put(n).ok());  // 0, 1, 2 go down
  WaitForLowWatermark();
  for (uint32_t n = 19; n < 22; ++n) ASSERT_TRUE(Put(n).ok());  // then 3, 4, 5
  WaitForLowWatermark();
  for (uint32_t n = 0; n < 22; ++n) EXPECT_EQ(static_cast<bool>(tiers_->Find(Key(n))), n > 2) << n;
  EXPECT_EQ(tiers_->Stats().host.evicted_slabs, 3u);
  EXPECT_EQ(tiers_->Stats().device.evicted_slabs, 0u);
}

TEST_F(TiersDemotion, PinnedSlabs_StayOnTheDevice) {
  Create(64 * kBytes);
  std::vector<Pin> pins;
  for (uint32_t n = 0; n < 10; ++n) {
    ASSERT_TRUE(Put(n).ok());
    pins.push_back(tiers_->Find(Key(n)));
  }
  for (uint32_t n = 10; n < 19; ++n) ASSERT_TRUE(Put(n).ok());
  WaitForLowWatermark();
  for (uint32_t n = 0; n < 19; ++n) {
    EXPECT_EQ(tiers_->Find(Key(n)).on_host(), n >= 10 && n <= 12) << n;
  }
}

TEST_F(TiersDemotion, HostFull_TheDeviceEvicts) {
  Create(2 * kBytes);
  auto first = tiers_->Reserve(Tier::kHost, Key(100), SlabTag{}, 2 * kBytes, 0);
  ASSERT_TRUE(first.ok());  // being filled: nothing to evict on the host
  for (uint32_t n = 0; n < 30; ++n) ASSERT_TRUE(Put(n).ok());
  EXPECT_EQ(tiers_->Stats().demoted_slabs, 0u);
  EXPECT_EQ(tiers_->Stats().device.evicted_slabs, 10u);
  first = absl::CancelledError();
  WaitForLowWatermark();  // by itself, now that there is room: what the host cannot keep it evicts
  EXPECT_EQ(tiers_->Stats().demoted_slabs, 4u);
  EXPECT_EQ(tiers_->Stats().host.slabs, 2u);
}

TEST_F(TiersDemotion, HostHasACopy_NothingIsCopied) {
  Create(64 * kBytes);
  auto room = tiers_->Reserve(Tier::kHost, Key(0), {0, 0, 0, 64}, kBytes, kBytes);
  Describe({0, 3}, room->primary());
  Describe({0, 3}, room->refinement());
  const std::byte* on_host = room->primary().data();
  std::move(*room).Publish();
  {
    auto copy = tiers_->ReserveCopy(tiers_->Find(Key(0)));
    ASSERT_TRUE(copy.ok());
    ASSERT_TRUE(Fill(*queue_, *copy, {0, 3}).ok());
    std::move(*copy).Publish();
  }
  EXPECT_FALSE(tiers_->Find(Key(0)).on_host());
  for (uint32_t n = 1; n < 18; ++n) ASSERT_TRUE(Put(n).ok());
  WaitForLowWatermark();
  const Pin pin = tiers_->Find(Key(0));
  EXPECT_EQ(pin.primary().data(), on_host);
  EXPECT_EQ(Check(*queue_, pin, 0), "");
  EXPECT_EQ(pin.refinement().size(), kBytes);
}

// The host has dropped the refinement of its copy under pressure; the device's is not lost.
TEST_F(TiersDemotion, HostHasACopyWithoutRefinement_IsReplaced) {
  Create(3 * kBytes);
  auto room = tiers_->Reserve(Tier::kHost, Key(0), {0, 0, 0, 64}, kBytes, kBytes);
  Describe({0, 3}, room->primary());
  Describe({0, 3}, room->refinement());
  std::move(*room).Publish();
  {
    auto copy = tiers_->ReserveCopy(tiers_->Find(Key(0)));
    ASSERT_TRUE(Fill(*queue_, *copy, {0, 3}).ok());
    std::move(*copy).Publish();
  }
  tiers_->Reserve(Tier::kHost, Key(100), SlabTag{}, 2 * kBytes, 0).value().Publish();
  EXPECT_EQ(tiers_->Stats().host.dropped_refinements, 1u);
  for (uint32_t n = 1; n < 18; ++n) ASSERT_TRUE(Put(n).ok());
  WaitForLowWatermark();
  const Pin pin = tiers_->Find(Key(0));
  EXPECT_TRUE(pin.on_host());
  EXPECT_EQ(pin.refinement().size(), kBytes);
  EXPECT_EQ(Check(*queue_, pin, 0), "");
}

TEST_F(TiersDemotion, CopyFails_NothingIsPublishedAndItGoesOn) {
  Create(64 * kBytes);
  for (uint32_t n = 0; n < 18; ++n) ASSERT_TRUE(Put(n).ok());
  device_.FailNextFinish(absl::InternalError("a copy fails"));
  const auto room = tiers_->Reserve(Tier::kDevice, Key(18), SlabTag{}, kBytes, 0);
  ASSERT_TRUE(room.ok());
  WaitForLowWatermark();
  for (uint32_t n = 0; n < 18; ++n) {
    const Pin pin = tiers_->Find(Key(n));
    ASSERT_TRUE(pin) << n;
    EXPECT_EQ(Check(*queue_, pin, n), "") << n;
  }
  EXPECT_EQ(tiers_->Stats().failed_demotions, 1u);
  EXPECT_EQ(tiers_->Stats().demoted_slabs, 3u);
  EXPECT_EQ(tiers_->Stats().host.reserved_slabs, 0u);
}

TEST_F(TiersDemotion, DeviceLost_ThreadEndsAndHostServes) {
  Create(64 * kBytes);
  for (uint32_t n = 0; n < 19; ++n) ASSERT_TRUE(Put(n).ok());
  WaitForLowWatermark();
  device_.Lose();
  (void)tiers_->Reserve(Tier::kDevice, Key(50), SlabTag{}, 4 * kBytes, 0);
  tiers_->DropDevice();
  EXPECT_TRUE(tiers_->Find(Key(0)));
  EXPECT_FALSE(tiers_->Find(Key(18)));
  tiers_.reset();  // does not hang
}

TEST_F(TiersDemotion, ErasedWhileCopied_DoesNotComeBack) {
  Create(64 * kBytes);
  for (uint32_t n = 0; n < 18; ++n) ASSERT_TRUE(Put(n).ok());
  while_copied_ = [&] { tiers_->Erase(Key(1)); };
  ASSERT_TRUE(Put(18).ok());
  WaitForLowWatermark();
  EXPECT_TRUE(tiers_->Find(Key(0)).on_host());
  EXPECT_FALSE(tiers_->Find(Key(1)));
  EXPECT_EQ(tiers_->Stats().host.slabs, 2u);
  EXPECT_EQ(tiers_->Stats().demoted_slabs, 2u);
}

TEST_F(TiersDemotion, ErasedAndStoredAgainWhileCopied_TheNewOneStays) {
  Create(64 * kBytes);
  for (uint32_t n = 0; n < 18; ++n) ASSERT_TRUE(Put(n).ok());
  const auto other_queue = device_.CreateQueue(true).value();
  absl::Status stored = absl::UnknownError("not tried");
  while_copied_ = [&, first = true]() mutable {
    if (!std::exchange(first, false)) return;
    EXPECT_TRUE(tiers_->Erase(Key(1)));
    stored = Put(*other_queue, 1, 9, 0);
  };
  const auto room = tiers_->Reserve(Tier::kDevice, Key(18), SlabTag{}, kBytes, 0);
  WaitForLowWatermark();
  EXPECT_TRUE(stored.ok()) << stored;
  const Pin pin = tiers_->Find(Key(1));
  ASSERT_TRUE(pin);
  EXPECT_FALSE(pin.on_host());
  EXPECT_EQ(conformance::VersionOf(Read(*queue_, pin, pin.primary())), 9);
}

TEST_F(TiersDemotion, RefinementDroppedWhileCopied_IsDroppedOnTheHost) {
  Create(64 * kBytes);
  for (uint32_t n = 0; n < 9; ++n) ASSERT_TRUE(Put(*queue_, n, 7, kBytes).ok());
  while_copied_ = [&] { tiers_->DropRefinement(Key(0)); };
  const auto room = tiers_->Reserve(Tier::kDevice, Key(18), SlabTag{}, kBytes, 0);
  WaitForLowWatermark();
  const Pin pin = tiers_->Find(Key(0));
  EXPECT_TRUE(pin.on_host());
  EXPECT_TRUE(pin.refinement().empty());
  EXPECT_EQ(Check(*queue_, pin, 0), "");
  EXPECT_FALSE(tiers_->Find(Key(1)).refinement().empty());
}

// Small slabs leave the device in an order of use that has nothing to do with where they lie, so
// they leave holes that large ones cannot use; still nothing is evicted, for holes count.
TEST_F(TiersDemotion, SlabsOfAnotherSize_LoseNothing) {
  constexpr uint64_t kLarge = uint64_t{128} << 20;
  constexpr size_t kSmallBytes = 300000, kLargeBytes = 1900000;
  Create(uint64_t{512} << 20, kLarge, TiersOptions());
  uint32_t stored = 0;
  const auto put = [&](size_t bytes) {
    auto room = tiers_->Reserve(Tier::kDevice, Key(stored), {stored, 0, 0, 64}, bytes, 0);
    ASSERT_TRUE(room.ok());
    ASSERT_TRUE(Fill(*queue_, *room, {stored, 1}).ok());
    std::move(*room).Publish();
    ++stored;
    ASSERT_TRUE(Eventually([&] {
      return tiers_->device()->used_bytes() <= kLarge * 9 / 10 &&
             tiers_->device()->available_bytes() >= kLarge / 64;
    }));
  };
  while (tiers_->device()->used_bytes() < kLarge * 88 / 100) {
    ASSERT_NO_FATAL_FAILURE(put(kSmallBytes));
  }
  std::vector<uint32_t> order(stored);
  for (uint32_t n = 0; n < stored; ++n) order[n] = n;
  std::shuffle(order.begin(), order.end(), std::mt19937_64(1));
  for (uint32_t n : order) EXPECT_TRUE(tiers_->Find(Key(n)));
  for (int i = 0; i < 50; ++i) put(kLargeBytes);
  EXPECT_EQ(tiers_->Stats().device.evicted_slabs, 0u);
  for (uint32_t n = 0; n < stored; ++n) {
    const Pin pin = tiers_->Find(Key(n));
    ASSERT_TRUE(pin) << n;
    EXPECT_EQ(Check(*queue_, pin, n), "") << n;
  }
}

// A reader looks for the first slab of each batch all the time while it goes down.
TEST_F(TiersDemotion, OnItsWayDown_ASlabIsFoundAllTheTime) {
  Create(32 * kBytes);
  const auto wanted = std::make_shared<std::atomic<uint32_t>>(0);
  std::atomic<int> misses{0};
  std::atomic<bool> done{false};
  while_copied_ = [this, wanted] {
    *wanted = static_cast<uint32_t>(tiers_->Stats().demoted_slabs);
  };
  for (uint32_t n = 0; n < 16; ++n) ASSERT_TRUE(Put(n).ok());
  std::thread reader([&] {
    while (!done) {
      const uint32_t n = *wanted;
      // Peek is no use. Once another is wanted, the host may have evicted this one.
      if (!tiers_->Peek(Key(n)) && *wanted == n) ++misses;
    }
  });
  for (uint32_t n = 16; n < 200; ++n) {
    EXPECT_TRUE(Put(n).ok());
    EXPECT_TRUE(
        Eventually([&] { return tiers_->device()->used_bytes() <= kDeviceBytes * 9 / 10; }));
  }
  done = true;
  reader.join();
  EXPECT_EQ(misses, 0);
  EXPECT_GE(tiers_->Stats().demoted_slabs, 180u);
  EXPECT_EQ(tiers_->Stats().device.evicted_slabs, 0u);
}

// Each thread owns keys that only it stores and removes, so it knows what must be found: nothing
// may be lost, come back, or be another version, while slabs go down and come up under it and
// everybody reads everything. FQ_TEST_SEED repeats a run.
class Mover {
 public:
  Mover(Tiers& tiers, HostDevice& device, uint32_t first_key, uint64_t seed)
      : tiers_(tiers),
        queue_(device.CreateQueue(true).value()),
        first_key_(first_key),
        random_(seed) {}

  static constexpr uint32_t kKeys = 24;         // of one thread
  static constexpr size_t kPartBytes = 100000;  // both parts: one size wastes no granules
  static constexpr uint64_t kDeviceBytes = 6 << 20;
  static constexpr uint64_t kPutBelowBytes = kDeviceBytes * 8 / 10;  // the device must not evict

  void Run(int steps) {
    for (int i = 0; i < steps && error_.empty(); ++i) Step();
    pins_.clear();
  }
  const std::string& error() const { return error_; }

  // Everything that is known must be there, when nothing moves any more.
  void CheckAll() {
    for (uint32_t n = 0; n < kKeys; ++n) CheckOwn(n, true);
  }

 private:
  struct Known {
    bool stored = false, refined = false;
    uint16_t version = 0;
  };

  void Step() {
    const uint32_t n = random_() % kKeys;
    switch (random_() % 8) {
      case 0:
      case 1:
      case 2:
        Put(n);
        break;
      case 3:
        Remove(n);
        break;
      case 4:
        Promote(first_key_ + n);
        break;
      case 5:
        Read(random_() % (4 * kKeys));
        break;
      default:
        CheckOwn(n, false);
    }
  }

  void Put(uint32_t n) {
    while (tiers_.device()->used_bytes() > kPutBelowBytes) std::this_thread::yield();
    const uint32_t key = first_key_ + n;
    const bool refined = random_() % 2 == 0, on_device = random_() % 4 != 0;
    auto room = tiers_.Reserve(on_device ? Tier::kDevice : Tier::kHost, Key(key), {key, 0, 0, 64},
                               kPartBytes, refined ? kPartBytes : 0);
    if (room.ok() == known_[n].stored) {
      Fail(key, room.ok() ? "was lost" : room.status().ToString());
      return;
    }
    if (!room.ok()) return;
    known_[n] = {true, refined, static_cast<uint16_t>(random_())};
    Write({key, known_[n].version}, room->primary(), on_device);
    Write({key, known_[n].version}, room->refinement(), on_device);
    std::move(*room).Publish();
  }

  void Remove(uint32_t n) {
    const uint32_t key = first_key_ + n;
    if (random_() % 2 == 0) {
      tiers_.DropRefinement(Key(key));
      known_[n].refined = false;
      return;
    }
    if (tiers_.Erase(Key(key)) != known_[n].stored) Fail(key, "was lost or came back");
    known_[n].stored = false;
    if (tiers_.Find(Key(key))) Fail(key, "is found after Erase");
  }

  void Promote(uint32_t key) {
    if (tiers_.device()->used_bytes() > kPutBelowBytes) return;
    const Pin pin = tiers_.Find(Key(key));
    if (!pin || !pin.on_host()) return;
    auto room = tiers_.ReserveCopy(pin);
    if (!room.ok()) return;
    Copy(pin.primary(), room->primary());
    if (!room->refinement().empty()) Copy(pin.refinement(), room->refinement());
    std::move(*room).Publish();
  }

  void Read(uint32_t key) {
    Pin pin = tiers_.Find(Key(key));
    if (!pin) return;
    Check(pin, key);
    pins_.push_back(std::move(pin));
    if (pins_.size() < 4) return;
    for (const Pin& held : pins_) Check(held, held.tag().block_index);
    pins_.clear();
  }

  void CheckOwn(uint32_t n, bool at_rest) {
    const uint32_t key = first_key_ + n;
    const Pin pin = tiers_.Find(Key(key));
    if (static_cast<bool>(pin) != known_[n].stored) Fail(key, pin ? "came back" : "was lost");
    if (!pin || !error_.empty()) return;
    if (Check(pin, key) != known_[n].version) Fail(key, "is another version");
    if (pin.refinement().empty() && known_[n].refined) Fail(key, "has lost its refinement");
    if (at_rest && !pin.refinement().empty() && !known_[n].refined)
      Fail(key, "kept its refinement");
  }

  uint16_t Check(const Pin& pin, uint32_t key) {
    if (pin.tag().block_index != key) Fail(key, "has the tag of another");
    const std::vector<std::byte> primary = Bytes(pin, pin.primary());
    const Description description{key, conformance::VersionOf(primary)};
    for (const auto& bytes : {primary, Bytes(pin, pin.refinement())}) {
      if (std::string found = Mismatch(description, bytes); !found.empty()) Fail(key, found);
    }
    return description.version;
  }

  std::vector<std::byte> Bytes(const Pin& pin, absl::Span<const std::byte> bytes) {
    std::vector<std::byte> read(bytes.size());
    if (bytes.empty()) return read;
    if (pin.on_host()) {
      std::memcpy(read.data(), bytes.data(), bytes.size());
    } else if (!queue_->CopyToHost(absl::MakeSpan(read), bytes.data()).ok() ||
               !queue_->Finish().ok()) {
      Fail(0, "cannot be copied");
    }
    return read;
  }

  void Write(Description description, absl::Span<std::byte> to, bool on_device) {
    std::vector<std::byte> bytes(to.size());
    Describe(description, absl::MakeSpan(bytes));
    if (on_device) {
      Copy(bytes, to);
    } else if (!to.empty()) {
      std::memcpy(to.data(), bytes.data(), to.size());
    }
  }

  void Copy(absl::Span<const std::byte> from, absl::Span<std::byte> to) {
    if (to.empty()) return;
    if (!queue_->CopyToDevice(to.data(), from).ok() || !queue_->Finish().ok()) {
      Fail(0, "cannot be copied");
    }
  }

  void Fail(uint32_t key, const std::string& what) {
    if (error_.empty()) error_ = "slab " + std::to_string(key) + " " + what;
  }

  Tiers& tiers_;
  const std::unique_ptr<DeviceQueue> queue_;
  const uint32_t first_key_;
  std::mt19937_64 random_;
  std::map<uint32_t, Known> known_;
  std::vector<Pin> pins_;
  std::string error_;
};

TEST_F(TiersDemotion, ManyThreads_NothingIsLostNorComesBack) {
  const char* given = std::getenv("FQ_TEST_SEED");
  const uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  SCOPED_TRACE("FQ_TEST_SEED=" + std::to_string(seed));
  TiersOptions options;
  options.high_watermark = 0.6;
  options.low_watermark = 0.4;
  Create(64 << 20, Mover::kDeviceBytes, std::move(options));
  std::vector<std::unique_ptr<Mover>> movers;
  for (uint32_t i = 0; i < 4; ++i) {
    movers.push_back(std::make_unique<Mover>(*tiers_, device_, i * Mover::kKeys, seed + i));
  }
  std::vector<std::thread> threads;
  for (auto& mover : movers) threads.emplace_back([&mover] { mover->Run(3000); });
  std::atomic<bool> done{false};
  std::thread auditor([&] {
    while (!done) {
      EXPECT_TRUE(tiers_->CheckInvariants().ok()) << tiers_->CheckInvariants();
      absl::SleepFor(absl::Milliseconds(1));
    }
  });
  for (std::thread& thread : threads) thread.join();
  done = true;
  auditor.join();
  EXPECT_TRUE(
      Eventually([&] { return tiers_->device()->used_bytes() <= Mover::kDeviceBytes * 6 / 10; }));
  for (auto& mover : movers) {
    EXPECT_EQ(mover->error(), "");
    mover->CheckAll();
    EXPECT_EQ(mover->error(), "");
  }
  const TierStats stats = tiers_->Stats();
  EXPECT_EQ(stats.host.evicted_slabs + stats.device.evicted_slabs, 0u);
  EXPECT_GT(stats.demoted_slabs, 100u);
  EXPECT_GT(stats.promoted_slabs, 100u);
  for (uint32_t n = 0; n < 4 * Mover::kKeys; ++n) tiers_->Erase(Key(n));
  EXPECT_TRUE(Eventually([&] {  // demotion may hold some
    return tiers_->Stats().host.used_bytes + tiers_->Stats().device.used_bytes == 0;
  }));
}

}  // namespace
}  // namespace fq
