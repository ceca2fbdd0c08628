#include "kernels/memory/pinned_space.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/memory/ahead_space.h"
#include "tests/testing/driver_stand_in.h"

namespace fq {
namespace {

constexpr size_t kGranule = kPinnedGranuleBytes;

// The system pins that much, too.
std::unique_ptr<MemorySpace> Create(size_t most_granules) {
  Driver() = DriverStandIn();
  Driver().pinned_limit_bytes = most_granules * kGranule;
  return CreatePinnedSpace(0, most_granules * kGranule);
}

TEST(PinnedSpace, Commit_PinsAndDecommitUnpins) {
  const auto space = Create(8);
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
  const auto space = Create(8);
  Driver().pinned_limit_bytes = 4 * kGranule;
  std::byte* begin = space->Reserve(8 * kGranule);
  ASSERT_TRUE(space->Commit(begin, 2 * kGranule));
  EXPECT_FALSE(space->Commit(begin + 2 * kGranule, 3 * kGranule));
  EXPECT_EQ(Driver().pinned_bytes, 2 * kGranule);
  EXPECT_TRUE(space->Commit(begin + 2 * kGranule, 2 * kGranule));
  space->Unreserve(begin, 8 * kGranule);
}

TEST(PinnedSpace, Commit_PastItsMost_ChangesNothing) {
  const auto space = Create(4);
  Driver().pinned_limit_bytes = 8 * kGranule;
  std::byte* begin = space->Reserve(8 * kGranule);
  EXPECT_FALSE(space->Commit(begin, 5 * kGranule));
  EXPECT_EQ(Driver().pinned_bytes, 0u);
  EXPECT_TRUE(space->Commit(begin, 4 * kGranule));
  space->Unreserve(begin, 8 * kGranule);
}

// As a node has it: what the thread of ahead_space.h pinned is had, and holds nobody's bytes.
TEST(PinnedSpace, PinnedAhead_IsHad) {
  const auto space = CreateAheadSpace(Create(4), {4 * kGranule, 4 * kGranule});
  std::byte* first = space->Reserve(8 * kGranule);
  ASSERT_TRUE(space->Commit(first, kGranule));
  while (PinnedBytes() != 4 * kGranule) std::this_thread::yield();  // or this test has failed
  ASSERT_TRUE(space->Commit(first + kGranule, kGranule));
  std::memset(first, 5, 2 * kGranule);
  std::byte* second = space->Reserve(8 * kGranule);
  ASSERT_TRUE(space->Commit(second, 2 * kGranule));  // were first's, ahead
  EXPECT_FALSE(space->Commit(second + 2 * kGranule, kGranule));
  space->Decommit(first, kGranule);
  ASSERT_TRUE(space->Commit(second + 2 * kGranule, kGranule));
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(second[i * kGranule], std::byte{0}) << i;
  EXPECT_EQ(first[2 * kGranule - 1], std::byte{5});
  space->Unreserve(first, 8 * kGranule);
  space->Unreserve(second, 8 * kGranule);
  EXPECT_EQ(PinnedBytes(), 0u);
}

TEST(PinnedSpace, Parts_LieInOneGranuleEach) {
  const auto space = Create(4);
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
