#include "server/store/slab_pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "kernels/memory/host_space.h"
#include "tests/testing/strict_space.h"

namespace fq {
namespace {

constexpr size_t kGranule = size_t{2} << 20;

struct HostPool : SlabPool {
  explicit HostPool(uint64_t capacity_bytes) : SlabPool(CreateHostSpace(), capacity_bytes) {}
};

// Over large granules, of which there are no more than the capacity needs.
struct StrictPool : SlabPool {
  explicit StrictPool(uint64_t capacity_bytes)
      : StrictPool(std::make_shared<StrictSpace>(kGranule, capacity_bytes), capacity_bytes) {}
  StrictPool(std::shared_ptr<StrictSpace> with, uint64_t capacity_bytes)
      : SlabPool(with, capacity_bytes), space(std::move(with)) {}
  const std::shared_ptr<StrictSpace> space;
};

std::optional<Extent> Take(SlabPool& pool, size_t bytes) {
  const auto room = pool.Allocate(bytes, 0);
  if (!room) return std::nullopt;
  return room->primary;
}

void Give(SlabPool& pool, const Extent& extent) { pool.Free({extent, {}}); }

TEST(SlabPool, Allocate_RoundsTo64Bytes) {
  HostPool pool(1 << 20);
  for (size_t bytes : {size_t{1}, size_t{64}, size_t{65}, size_t{1000}}) {
    const auto extent = Take(pool, bytes);
    ASSERT_TRUE(extent);
    EXPECT_EQ(extent->span().size(), bytes);
    EXPECT_LT(extent->stored_bytes() - bytes, 64u);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(extent->data) % 64, 0u);
  }
  EXPECT_EQ(pool.Usage().requested_bytes, 1130u);
  EXPECT_EQ(pool.Usage().used_bytes, 64u + 64 + 128 + 1024);
}

TEST(SlabPool, Allocate_NothingOrTooMuch) {
  HostPool pool(1 << 20);
  EXPECT_TRUE(Take(pool, 0)->empty());
  EXPECT_FALSE(Take(pool, (1 << 20) + 1));
  EXPECT_TRUE(Take(pool, 1 << 20));
  EXPECT_FALSE(Take(pool, 1));
  EXPECT_TRUE(pool.CheckInvariants().ok());
}

TEST(SlabPool, Expect_TakesAddressesAndNoMemory) {
  StrictPool pool(8 * kGranule);
  pool.Expect(kGranule, kGranule / 2);
  pool.Expect(kGranule, 0);
  pool.Expect(9 * kGranule, 0);  // can never come
  EXPECT_EQ(pool.space->reservations(), 2u);
  EXPECT_EQ(pool.space->committed_bytes(), 0u);
  EXPECT_EQ(pool.Usage().resident_bytes, 0u);
  const auto room = pool.Allocate(kGranule, kGranule / 2);
  ASSERT_TRUE(room);
  EXPECT_EQ(pool.space->reservations(), 2u);
  EXPECT_TRUE(pool.CheckInvariants().ok());
  pool.Free(*room);
}

TEST(SlabPool, Free_EmptyChunk_GoesBackToTheSystem) {
  HostPool pool(1 << 20);
  const auto first = Take(pool, 5000);
  const auto second = Take(pool, 5000);
  Give(pool, *first);
  EXPECT_GT(pool.Usage().resident_bytes, 0u);
  Give(pool, *second);
  EXPECT_EQ(pool.Usage().resident_bytes, 0u);
  EXPECT_EQ(pool.Usage().used_bytes, 0u);
}

TEST(SlabPool, IdleMemoryOfOneSize_ServesAnother) {
  HostPool pool(16 * 65536);
  std::vector<Extent> extents;
  for (int i = 0; i < 16; ++i) extents.push_back(*Take(pool, 65536));
  EXPECT_FALSE(Take(pool, 32768));
  Give(pool, extents[7]);  // its chunk is still in use
  EXPECT_TRUE(Take(pool, 32768));
  EXPECT_TRUE(Take(pool, 32768));
  EXPECT_FALSE(Take(pool, 32768));
  EXPECT_TRUE(pool.CheckInvariants().ok()) << pool.CheckInvariants();
}

TEST(SlabPool, IdleMemory_TooLittle_IsLeftWhereItIs) {
  HostPool pool(16 * 65536);
  std::vector<Extent> extents;
  for (int i = 0; i < 16; ++i) extents.push_back(*Take(pool, 65536));
  Give(pool, extents[7]);
  EXPECT_FALSE(Take(pool, 2 * 65536));
  EXPECT_EQ(pool.Usage().idle_bytes, 65536u);
  EXPECT_EQ(Take(pool, 65536)->data, extents[7].data);
}

TEST(SlabPool, RealSlabs_LoseLessThanOnePercent) {
  // Base and refinement of a slab of 30 layers x 3 heads, and an exact slab of the same.
  HostPool pool(64 << 20);
  uint64_t requested_bytes = 0;
  for (bool full = false; !full;) {
    for (size_t bytes : {size_t{192 * 1024 + 328}, size_t{184 * 1024 + 72}, size_t{1474560}}) {
      const auto extent = Take(pool, bytes);
      full = full || !extent;
      if (extent) requested_bytes += bytes;
    }
  }
  const SlabPoolUsage usage = pool.Usage();
  EXPECT_LE(usage.resident_bytes, pool.capacity_bytes());
  EXPECT_LE(usage.resident_bytes - requested_bytes, requested_bytes / 100);
}

void RandomSizesNeverOverlapNorExceed(SlabPool& pool) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  std::vector<std::pair<Extent, int>> live;
  for (int i = 0; i < 20000; ++i) {
    const size_t bytes = 1 + (random() % 7) * 20000;
    if (const auto extent = Take(pool, bytes); extent && random() % 3 != 0) {
      std::memset(extent->data, i & 0xff, bytes);
      live.emplace_back(*extent, i & 0xff);
    } else {
      if (extent) Give(pool, *extent);
      if (live.empty()) continue;
      std::swap(live[random() % live.size()], live.back());
      const auto [old, mark] = live.back();
      ASSERT_EQ(static_cast<int>(old.data[0]), mark);
      ASSERT_EQ(static_cast<int>(old.data[old.bytes - 1]), mark);
      Give(pool, old);
      live.pop_back();
    }
    if (i % 1000 != 0) continue;
    ASSERT_TRUE(pool.CheckInvariants().ok()) << pool.CheckInvariants();
  }
  for (const auto& [extent, mark] : live) Give(pool, extent);
  EXPECT_EQ(pool.Usage().used_bytes, 0u);
  EXPECT_EQ(pool.Usage().resident_bytes, pool.Usage().idle_bytes);
}

TEST(SlabPool, RandomSizes_NeverOverlapNorExceed) {
  HostPool pool(4 << 20);
  RandomSizesNeverOverlapNorExceed(pool);
  EXPECT_EQ(pool.Usage().resident_bytes, 0u);
}

TEST(SlabPool, RandomSizesOnLargeGranules_NeverOverlapNorExceed) {
  StrictPool pool(10 * kGranule);
  RandomSizesNeverOverlapNorExceed(pool);
  EXPECT_EQ(pool.Usage().resident_bytes, pool.space->committed_bytes());
}

TEST(SlabPool, Allocate_BothOrNothing) {
  HostPool pool(16 * 65536);
  std::vector<Extents> slabs;
  for (int i = 0; i < 8; ++i) slabs.push_back(*pool.Allocate(65536, 65536));
  pool.Free(slabs[3]);
  EXPECT_FALSE(pool.Allocate(65536, 65537));
  EXPECT_FALSE(pool.Allocate(32768, 2 * 65536));
  EXPECT_FALSE(pool.Allocate(UINT64_MAX, 65536));
  EXPECT_EQ(pool.Usage().idle_bytes, 2u * 65536);  // nothing was taken apart for one of them
  const auto again = pool.Allocate(65536, 65536);
  ASSERT_TRUE(again);
  EXPECT_EQ(again->stored_bytes(), 2u * 65536);
  EXPECT_TRUE(pool.CheckInvariants().ok()) << pool.CheckInvariants();
}

TEST(SlabPool, HolesInALargeGranule_ServeTheirOwnSize) {
  StrictPool pool(2 * kGranule);
  std::vector<Extent> extents;
  for (int i = 0; i < 8; ++i) extents.push_back(*Take(pool, kGranule / 4));
  Give(pool, extents[1]);
  Give(pool, extents[6]);
  EXPECT_FALSE(Take(pool, kGranule / 2));  // no granule is free of others
  EXPECT_TRUE(Take(pool, kGranule / 4));
  EXPECT_TRUE(Take(pool, kGranule / 4));
  EXPECT_FALSE(Take(pool, kGranule / 4));
  for (int i : {0, 1, 2, 3}) Give(pool, extents[i]);
  EXPECT_EQ(pool.Usage().idle_bytes, kGranule);
  EXPECT_TRUE(Take(pool, kGranule / 2));
  EXPECT_TRUE(pool.CheckInvariants().ok()) << pool.CheckInvariants();
}

TEST(SlabPool, SpaceKeepsIdle_EmptyChunkStaysUntilItsMemoryIsNeeded) {
  StrictPool pool(4 * kGranule);
  Give(pool, *Take(pool, 2 * kGranule));
  EXPECT_EQ(pool.Usage().idle_bytes, 2 * kGranule);
  EXPECT_EQ(pool.Usage().used_bytes, 0u);
  EXPECT_EQ(pool.space->committed_bytes(), 2 * kGranule);
  const auto other = Take(pool, 4 * kGranule);
  ASSERT_TRUE(other);
  EXPECT_EQ(pool.Usage().idle_bytes, 0u);
  pool.space->set_keeps_idle(false);
  Give(pool, *other);
  EXPECT_EQ(pool.space->committed_bytes(), 0u);
}

TEST(SlabPool, SpaceSmallerThanTheCapacity_IsFullEarlier) {
  StrictPool pool(std::make_shared<StrictSpace>(kGranule, 2 * kGranule), 8 * kGranule);
  const auto first = Take(pool, kGranule), second = Take(pool, kGranule);
  ASSERT_TRUE(first && second);
  EXPECT_FALSE(Take(pool, kGranule));
  EXPECT_FALSE(Take(pool, kGranule / 2));
  Give(pool, *first);
  EXPECT_TRUE(Take(pool, kGranule / 2));  // what the other size left
  EXPECT_TRUE(pool.CheckInvariants().ok()) << pool.CheckInvariants();
}

}  // namespace
}  // namespace fq
