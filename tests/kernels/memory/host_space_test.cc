#include "kernels/memory/host_space.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>

namespace fq {
namespace {

TEST(HostSpace, Decommit_GivesMemoryBackToTheSystem) {
  const auto space = CreateHostSpace();
  const size_t granule = space->granule_bytes();
  EXPECT_TRUE(space->on_host());
  EXPECT_FALSE(space->keeps_idle());
  std::byte* begin = space->Reserve(4 * granule);
  ASSERT_NE(begin, nullptr);
  ASSERT_TRUE(space->Commit(begin, 4 * granule));
  std::memset(begin, 1, 4 * granule);
  space->Decommit(begin + granule, granule);
  unsigned char resident[4] = {};
  ASSERT_EQ(mincore(begin, 4 * granule, resident), 0);
  EXPECT_EQ(resident[0] & 1, 1);
  EXPECT_EQ(resident[1] & 1, 0);
  EXPECT_EQ(resident[2] & 1, 1);
  EXPECT_EQ(begin[4 * granule - 1], std::byte{1});
  space->Unreserve(begin, 4 * granule);
}

TEST(HostSpace, Reserve_MoreThanTheSystemHas_IsNull) {
  EXPECT_EQ(CreateHostSpace()->Reserve(size_t{1} << 62), nullptr);
}

}  // namespace
}  // namespace fq
