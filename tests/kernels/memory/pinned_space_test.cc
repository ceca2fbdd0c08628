#include "kernels/memory/pinned_space.h"

#include <gtest/gtest.h>

#include <cstring>
#include <utility>
#include <vector>

#include "tests/testing/driver_stand_in.h"

namespace fq {
namespace {

TEST(PinnedSpace, Commit_PinsAndDecommitUnpins) {
  Driver() = DriverStandIn();
  const auto space = CreatePinnedSpace();
  const size_t granule = space->granule_bytes();
  std::byte* begin = space->Reserve(8 * granule);
  ASSERT_NE(begin, nullptr);
  ASSERT_TRUE(space->Commit(begin, 3 * granule));
  std::memset(begin, 5, 3 * granule);
  EXPECT_EQ(Driver().pinned_bytes, 3 * granule);
  space->Decommit(begin + granule, granule);
  EXPECT_EQ(Driver().pinned_bytes, 2 * granule);
  EXPECT_EQ(begin[3 * granule - 1], std::byte{5});
  ASSERT_TRUE(space->Commit(begin + granule, granule));
  EXPECT_EQ(begin[granule], std::byte{0});  // another's bytes are gone
  space->Unreserve(begin, 8 * granule);
  EXPECT_EQ(Driver().pinned_bytes, 0u);
  EXPECT_TRUE(space->on_host());
}

TEST(PinnedSpace, Commit_PastTheLimit_ChangesNothing) {
  Driver() = DriverStandIn();
  const auto space = CreatePinnedSpace();
  const size_t granule = space->granule_bytes();
  Driver().pinned_limit_bytes = 4 * granule;
  std::byte* begin = space->Reserve(8 * granule);
  ASSERT_TRUE(space->Commit(begin, 2 * granule));
  EXPECT_FALSE(space->Commit(begin + 2 * granule, 3 * granule));
  EXPECT_EQ(Driver().pinned_bytes, 2 * granule);
  EXPECT_TRUE(space->Commit(begin + 2 * granule, 2 * granule));
  space->Unreserve(begin, 8 * granule);
}

TEST(PinnedSpace, Parts_LieInOneGranuleEach) {
  const auto space = CreatePinnedSpace();
  EXPECT_EQ(space->granule_bytes(), kPinnedGranuleBytes);
  std::byte* begin = space->Reserve(4 * kPinnedGranuleBytes);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(begin) % kPinnedGranuleBytes, 0u);
  std::vector<std::pair<size_t, size_t>> parts;
  const auto collect = [&](size_t at, size_t bytes) {
    parts.emplace_back(at, bytes);
    return absl::OkStatus();
  };
  EXPECT_TRUE(ForEachPinnedPart(begin + 100, 2 * kPinnedGranuleBytes, collect).ok());
  EXPECT_EQ(parts, (std::vector<std::pair<size_t, size_t>>{
                       {0, kPinnedGranuleBytes - 100},
                       {kPinnedGranuleBytes - 100, kPinnedGranuleBytes},
                       {2 * kPinnedGranuleBytes - 100, 100}}));
  parts.clear();
  EXPECT_TRUE(ForEachPinnedPart(begin, kPinnedGranuleBytes, collect).ok());
  EXPECT_EQ(parts.size(), 1u);
  EXPECT_TRUE(ForEachPinnedPart(begin, 0, collect).ok());
  EXPECT_EQ(parts.size(), 1u);
  const auto fail = [](size_t, size_t) { return absl::InternalError("no"); };
  EXPECT_FALSE(ForEachPinnedPart(begin, 1, fail).ok());
  space->Unreserve(begin, 4 * kPinnedGranuleBytes);
}

}  // namespace
}  // namespace fq
