#include "server/store/chunk.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <vector>

namespace fq {
namespace {

// Memory pages of [data, data + bytes) that the system says are resident.
size_t ResidentPages(std::byte* data, size_t bytes) {
  std::vector<unsigned char> pages(bytes / Chunk::kMemoryPageBytes);
  if (mincore(data, bytes, pages.data()) != 0) return 0;
  size_t count = 0;
  for (unsigned char page : pages) count += page & 1;
  return count;
}

TEST(Chunk, SlotCount_IsLimitedByTheCaller) {
  auto chunk = Chunk::Map(64, 3);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(chunk->has_fresh());
    chunk->TakeFresh();
  }
  EXPECT_FALSE(chunk->has_fresh());
}

TEST(Chunk, FreshSlots_CountEachMemoryPageOnce) {
  auto chunk = Chunk::Map(6 << 10, 100);
  EXPECT_EQ(chunk->NextFreshBytes(), 8192u);  // pages 0, 1
  chunk->TakeFresh();
  EXPECT_EQ(chunk->NextFreshBytes(), 4096u);  // page 1 is there, page 2 is new
  chunk->TakeFresh();
  EXPECT_EQ(chunk->NextFreshBytes(), 8192u);
  EXPECT_EQ(chunk->resident_bytes(), 12288u);
}

TEST(Chunk, ReleaseIdle_KeepsPagesOfNeighbours) {
  auto chunk = Chunk::Map(6 << 10, 100);
  const uint32_t first = chunk->TakeFresh();
  const uint32_t second = chunk->TakeFresh();
  std::memset(chunk->data(first), 1, 6 << 10);
  std::memset(chunk->data(second), 2, 6 << 10);
  chunk->Free(first);
  chunk->ReleaseIdle();
  EXPECT_EQ(chunk->resident_bytes(), 8192u);  // pages 1, 2
  EXPECT_EQ(chunk->data(second)[0], std::byte{2});
  chunk->Free(second);
  chunk->ReleaseIdle();
  EXPECT_EQ(chunk->resident_bytes(), 0u);
  EXPECT_TRUE(chunk->empty());
}

TEST(Chunk, ReleaseIdle_GivesMemoryBackToTheSystem) {
  constexpr size_t kBytes = 1 << 20;
  auto chunk = Chunk::Map(kBytes, 8);
  const uint32_t slot = chunk->TakeFresh();
  std::byte* data = chunk->data(slot);
  std::memset(data, 1, kBytes);
  EXPECT_EQ(ResidentPages(data, kBytes), kBytes / Chunk::kMemoryPageBytes);
  chunk->Free(slot);
  chunk->ReleaseIdle();
  EXPECT_EQ(ResidentPages(data, kBytes), 0u);
}

TEST(Chunk, WrittenSlot_MakesNothingElseResident) {
  constexpr size_t kBytes = 1 << 20;
  auto chunk = Chunk::Map(kBytes, 8);
  const uint32_t slot = chunk->TakeFresh();
  std::memset(chunk->data(slot), 1, kBytes);
  EXPECT_EQ(ResidentPages(chunk->data(slot) + kBytes, 7 * kBytes), 0u);
}

TEST(Chunk, SmallSlots_ShareOnePageManyTimes) {
  auto chunk = Chunk::Map(64, 64);
  for (int i = 0; i < 64; ++i) chunk->TakeFresh();
  EXPECT_EQ(chunk->resident_bytes(), 4096u);
  for (uint32_t slot = 0; slot < 64; ++slot) chunk->Free(slot);
  for (int i = 0; i < 63; ++i) chunk->ReleaseIdle();
  EXPECT_EQ(chunk->resident_bytes(), 4096u);
  chunk->ReleaseIdle();
  EXPECT_EQ(chunk->resident_bytes(), 0u);
}

}  // namespace
}  // namespace fq
