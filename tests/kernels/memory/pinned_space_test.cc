#include "kernels/memory/pinned_space.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/testing/driver_stand_in.h"

namespace fq {
namespace {

constexpr size_t kGranule = kPinnedGranuleBytes;

std::unique_ptr<MemorySpace> Create(size_t most_granules, size_t ahead_granules) {
  Driver() = DriverStandIn();
  Driver().pinned_limit_bytes = most_granules * kGranule;  // it never asks for more either
  return CreatePinnedSpace({0, most_granules * kGranule, ahead_granules * kGranule});
}

// Once the thread has pinned so much; a test that waits for ever has failed.
void AwaitPinned(size_t granules) {
  while (PinnedBytes() != granules * kGranule) std::this_thread::yield();
}

// What the thread would have pinned by now, had it wanted to.
void ExpectNoMoreThan(size_t granules) {
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(PinnedBytes(), granules * kGranule);
}

TEST(PinnedSpace, Commit_PinsAndDecommitUnpins) {
  const auto space = Create(8, 0);
  ASSERT_EQ(space->granule_bytes(), kGranule);
  std::byte* begin = space->Reserve(8 * kGranule);
  ASSERT_NE(begin, nullptr);
  ASSERT_TRUE(space->Commit(begin, 3 * kGranule));
  std::memset(begin, 5, 3 * kGranule);
  EXPECT_EQ(Driver().pinned_bytes, 3 * kGranule);
  space->Decommit(begin + kGranule, kGranule);
  EXPECT_EQ(Driver().pinned_bytes, 2 * kGranule);
  EXPECT_EQ(begin[3 * kGranule - 1], std::byte{5});
  ASSERT_TRUE(space->Commit(begin + kGranule, kGranule));
  EXPECT_EQ(begin[kGranule], std::byte{0});  // another's bytes are gone
  space->Unreserve(begin, 8 * kGranule);
  EXPECT_EQ(Driver().pinned_bytes, 0u);
  EXPECT_TRUE(space->on_host());
}

TEST(PinnedSpace, Commit_PastWhatTheSystemPins_ChangesNothing) {
  const auto space = Create(8, 0);
  Driver().pinned_limit_bytes = 4 * kGranule;
  std::byte* begin = space->Reserve(8 * kGranule);
  ASSERT_TRUE(space->Commit(begin, 2 * kGranule));
  EXPECT_FALSE(space->Commit(begin + 2 * kGranule, 3 * kGranule));
  EXPECT_EQ(Driver().pinned_bytes, 2 * kGranule);
  EXPECT_TRUE(space->Commit(begin + 2 * kGranule, 2 * kGranule));
  space->Unreserve(begin, 8 * kGranule);
}

TEST(PinnedSpace, Ahead_IsFourTimesWhatIsUsed) {
  const auto space = Create(16, 12);
  std::byte* begin = space->Reserve(16 * kGranule);
  AwaitPinned(1);
  ExpectNoMoreThan(1);
  std::memset(begin, 5, kGranule);
  ASSERT_TRUE(space->Commit(begin, kGranule));
  EXPECT_EQ(begin[kGranule - 1], std::byte{5});  // this very memory
  AwaitPinned(5);
  ExpectNoMoreThan(5);
  ASSERT_TRUE(space->Commit(begin + 8 * kGranule, kGranule));  // past what is pinned ahead
  AwaitPinned(13);
  ASSERT_TRUE(space->Commit(begin + kGranule, 7 * kGranule));
  space->Unreserve(begin, 16 * kGranule);
  EXPECT_EQ(PinnedBytes(), 0u);
}

TEST(PinnedSpace, Ahead_IsBoundedInAll) {
  const auto space = Create(64, 4);
  std::byte* first = space->Reserve(16 * kGranule);
  ASSERT_TRUE(space->Commit(first, 2 * kGranule));
  AwaitPinned(6);
  std::byte* second = space->Reserve(8 * kGranule);
  ExpectNoMoreThan(6);
  ASSERT_TRUE(space->Commit(first + 2 * kGranule, 6 * kGranule));
  AwaitPinned(12);
  ExpectNoMoreThan(12);
  std::memset(second, 1, kGranule);
  ASSERT_TRUE(space->Commit(second, kGranule));
  EXPECT_EQ(second[kGranule - 1], std::byte{1});
  space->Unreserve(first, 16 * kGranule);
  space->Unreserve(second, 8 * kGranule);
  EXPECT_EQ(PinnedBytes(), 0u);
}

// What is pinned ahead for one size of slabs must not be missing for another.
TEST(PinnedSpace, Ahead_GivesWayToWhatIsCommitted) {
  const auto space = Create(4, 4);
  std::byte* first = space->Reserve(8 * kGranule);
  ASSERT_TRUE(space->Commit(first, 2 * kGranule));
  AwaitPinned(4);
  std::byte* second = space->Reserve(8 * kGranule);
  ASSERT_TRUE(space->Commit(second, 2 * kGranule));
  EXPECT_FALSE(space->Commit(second + 2 * kGranule, kGranule));  // four are committed
  space->Decommit(second, kGranule);
  EXPECT_TRUE(space->Commit(first + 2 * kGranule, kGranule));
  space->Unreserve(first, 8 * kGranule);
  space->Unreserve(second, 8 * kGranule);
}

TEST(PinnedSpace, Ahead_TheSystemPinsLess_NothingIsMissing) {
  const auto space = Create(8, 8);
  Driver().pinned_limit_bytes = 3 * kGranule;
  std::byte* first = space->Reserve(8 * kGranule);
  ASSERT_TRUE(space->Commit(first, kGranule));
  AwaitPinned(3);
  std::byte* second = space->Reserve(8 * kGranule);
  EXPECT_TRUE(space->Commit(second, 2 * kGranule));
  EXPECT_FALSE(space->Commit(second + 2 * kGranule, kGranule));
  space->Unreserve(first, 8 * kGranule);
  space->Unreserve(second, 8 * kGranule);
  EXPECT_EQ(PinnedBytes(), 0u);
}

TEST(PinnedSpace, DestroyedWhilePinning_Ends) {
  for (int i = 0; i < 20; ++i) {
    const auto space = Create(16, 16);
    std::byte* begin = space->Reserve(16 * kGranule);
    space->Unreserve(begin, 16 * kGranule);
    EXPECT_EQ(PinnedBytes(), 0u);
  }
}

// Granules come and go in several reservations while others are pinned ahead: a granule that the
// limit leaves room for is always had, and holds its own bytes. FQ_TEST_SEED repeats a run.
TEST(PinnedSpace, AnyOrder_NothingIsMissingOrAnothers) {
  const char* given = std::getenv("FQ_TEST_SEED");
  const uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  SCOPED_TRACE("FQ_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  constexpr size_t kMost = 6, kReserved = 5;
  const auto space = Create(kMost, 4);
  std::map<std::byte*, std::map<size_t, std::byte>> held;  // by reservation: granule, its value
  size_t count = 0;
  for (int step = 0; step < 1000; ++step) {
    if (held.size() < 3) held[space->Reserve(kReserved * kGranule)];
    const auto it = std::next(held.begin(), static_cast<long>(random() % held.size()));
    auto& [begin, granules] = *it;
    const size_t granule = random() % kReserved;
    std::byte* const at = begin + granule * kGranule;
    if (random() % 50 == 0) {
      space->Unreserve(begin, kReserved * kGranule);
      count -= granules.size();
      held.erase(it);
    } else if (granules.count(granule) == 0) {
      ASSERT_EQ(space->Commit(at, kGranule), count < kMost) << step;
      if (count == kMost) continue;
      ASSERT_EQ(at[kGranule - 1], std::byte{0}) << step;
      granules[granule] = at[kGranule - 1] = static_cast<std::byte>(random());
      ++count;
    } else {
      ASSERT_EQ(at[kGranule - 1], granules[granule]) << step;
      space->Decommit(at, kGranule);
      granules.erase(granule);
      --count;
    }
  }
  for (auto& [begin, granules] : held) space->Unreserve(begin, kReserved * kGranule);
  EXPECT_EQ(PinnedBytes(), 0u);
}

TEST(PinnedSpace, Parts_LieInOneGranuleEach) {
  const auto space = Create(4, 0);
  std::byte* begin = space->Reserve(4 * kGranule);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(begin) % kGranule, 0u);
  std::vector<std::pair<size_t, size_t>> parts;
  const auto collect = [&](size_t at, size_t bytes) {
    parts.emplace_back(at, bytes);
    return absl::OkStatus();
  };
  EXPECT_TRUE(ForEachPinnedPart(begin + 100, 2 * kGranule, collect).ok());
  EXPECT_EQ(parts,
            (std::vector<std::pair<size_t, size_t>>{
                {0, kGranule - 100}, {kGranule - 100, kGranule}, {2 * kGranule - 100, 100}}));
  parts.clear();
  EXPECT_TRUE(ForEachPinnedPart(begin, kGranule, collect).ok());
  EXPECT_EQ(parts.size(), 1u);
  EXPECT_TRUE(ForEachPinnedPart(begin, 0, collect).ok());
  EXPECT_EQ(parts.size(), 1u);
  const auto fail = [](size_t, size_t) { return absl::InternalError("no"); };
  EXPECT_FALSE(ForEachPinnedPart(begin, 1, fail).ok());
  space->Unreserve(begin, 4 * kGranule);
}

}  // namespace
}  // namespace fq
