#include "kernels/memory/pinned_space.h"

#include <gtest/gtest.h>

#include <cstring>

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

}  // namespace
}  // namespace fq
