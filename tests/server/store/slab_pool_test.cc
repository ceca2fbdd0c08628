#include "server/store/slab_pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

namespace fq {
namespace {

TEST(SlabPool, Allocate_RoundsTo64Bytes) {
  SlabPool pool(1 << 20);
  for (size_t bytes : {size_t{1}, size_t{64}, size_t{65}, size_t{1000}}) {
    const auto extent = pool.Allocate(bytes);
    ASSERT_TRUE(extent);
    EXPECT_EQ(extent->span().size(), bytes);
    EXPECT_LT(extent->stored_bytes() - bytes, 64u);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(extent->data) % 64, 0u);
  }
  EXPECT_EQ(pool.Usage().requested_bytes, 1130u);
  EXPECT_EQ(pool.Usage().used_bytes, 64u + 64 + 128 + 1024);
}

TEST(SlabPool, Allocate_NothingOrTooMuch) {
  SlabPool pool(1 << 20);
  EXPECT_TRUE(pool.Allocate(0)->empty());
  EXPECT_FALSE(pool.Allocate((1 << 20) + 1));
  EXPECT_TRUE(pool.Allocate(1 << 20));
  EXPECT_FALSE(pool.Allocate(1));
  EXPECT_TRUE(pool.CheckInvariants().ok());
}

TEST(SlabPool, Free_EmptyChunk_GoesBackToTheSystem) {
  SlabPool pool(1 << 20);
  const auto first = pool.Allocate(5000);
  const auto second = pool.Allocate(5000);
  pool.Free(*first);
  EXPECT_GT(pool.Usage().resident_bytes, 0u);
  pool.Free(*second);
  EXPECT_EQ(pool.Usage().resident_bytes, 0u);
  EXPECT_EQ(pool.Usage().used_bytes, 0u);
}

TEST(SlabPool, IdleMemoryOfOneSize_ServesAnother) {
  SlabPool pool(16 * 65536);
  std::vector<Extent> extents;
  for (int i = 0; i < 16; ++i) extents.push_back(*pool.Allocate(65536));
  EXPECT_FALSE(pool.Allocate(32768));
  pool.Free(extents[7]);  // its chunk is still in use
  EXPECT_TRUE(pool.Allocate(32768));
  EXPECT_TRUE(pool.Allocate(32768));
  EXPECT_FALSE(pool.Allocate(32768));
  EXPECT_TRUE(pool.CheckInvariants().ok()) << pool.CheckInvariants();
}

TEST(SlabPool, IdleMemory_TooLittle_IsLeftWhereItIs) {
  SlabPool pool(16 * 65536);
  std::vector<Extent> extents;
  for (int i = 0; i < 16; ++i) extents.push_back(*pool.Allocate(65536));
  pool.Free(extents[7]);
  EXPECT_FALSE(pool.Allocate(2 * 65536));
  EXPECT_EQ(pool.Usage().idle_bytes, 65536u);
  EXPECT_EQ(pool.Allocate(65536)->data, extents[7].data);
}

TEST(SlabPool, RealSlabs_LoseLessThanOnePercent) {
  // Base and refinement of a slab of 30 layers x 3 heads, and an exact slab of the same.
  SlabPool pool(64 << 20);
  uint64_t requested_bytes = 0;
  for (bool full = false; !full;) {
    for (size_t bytes : {size_t{192 * 1024 + 328}, size_t{184 * 1024 + 72}, size_t{1474560}}) {
      const auto extent = pool.Allocate(bytes);
      full = full || !extent;
      if (extent) requested_bytes += bytes;
    }
  }
  const SlabPoolUsage usage = pool.Usage();
  EXPECT_LE(usage.resident_bytes, pool.capacity_bytes());
  EXPECT_LE(usage.resident_bytes - requested_bytes, requested_bytes / 100);
}

TEST(SlabPool, RandomSizes_NeverOverlapNorExceed) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  SlabPool pool(4 << 20);
  std::vector<std::pair<Extent, int>> live;
  for (int i = 0; i < 20000; ++i) {
    const size_t bytes = 1 + (random() % 7) * 20000;
    if (const auto extent = pool.Allocate(bytes); extent && random() % 3 != 0) {
      std::memset(extent->data, i & 0xff, bytes);
      live.emplace_back(*extent, i & 0xff);
    } else {
      if (extent) pool.Free(*extent);
      if (live.empty()) continue;
      std::swap(live[random() % live.size()], live.back());
      const auto [old, mark] = live.back();
      ASSERT_EQ(static_cast<int>(old.data[0]), mark);
      ASSERT_EQ(static_cast<int>(old.data[old.bytes - 1]), mark);
      pool.Free(old);
      live.pop_back();
    }
    if (i % 1000 != 0) continue;
    ASSERT_TRUE(pool.CheckInvariants().ok()) << pool.CheckInvariants();
  }
  for (const auto& [extent, mark] : live) pool.Free(extent);
  EXPECT_EQ(pool.Usage().resident_bytes, 0u);
}

}  // namespace
}  // namespace fq
