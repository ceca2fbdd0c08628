#include "server/store/chunk.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <random>
#include <vector>

#include "kernels/memory/host_space.h"
#include "tests/testing/strict_space.h"

namespace fq {
namespace {

constexpr size_t kPage = 4096;  // granule of host memory

// Memory pages of [data, data + bytes) that the system says are resident.
size_t ResidentPages(std::byte* data, size_t bytes) {
  std::vector<unsigned char> pages(bytes / kPage);
  if (mincore(data, bytes, pages.data()) != 0) return 0;
  size_t count = 0;
  for (unsigned char page : pages) count += page & 1;
  return count;
}

class ChunkTest : public testing::Test {
 protected:
  void Reserve(size_t slot_bytes, size_t slot_limit) {
    chunk_ = Chunk::Reserve(space_.get(), slot_bytes, slot_limit);
  }
  // Bytes that it made resident.
  size_t Take() {
    const Chunk::Taken taken = chunk_->Take();
    slots_.push_back(taken.slot);
    EXPECT_TRUE(chunk_->Commit(taken.slot));
    return taken.missing_bytes;
  }

  const std::unique_ptr<MemorySpace> space_ = CreateHostSpace();
  std::unique_ptr<Chunk> chunk_;
  std::vector<uint32_t> slots_;
};

TEST_F(ChunkTest, SlotCount_IsLimitedByTheCaller) {
  Reserve(64, 3);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(chunk_->has_ready() || chunk_->has_fresh());
    Take();
  }
  EXPECT_FALSE(chunk_->has_ready() || chunk_->has_fresh());
}

TEST_F(ChunkTest, FreshSlots_CountEachMemoryPageOnce) {
  Reserve(6 << 10, 100);
  EXPECT_EQ(Take(), 8192u);  // pages 0, 1
  EXPECT_EQ(Take(), 4096u);  // page 1 is there, page 2 is new
  EXPECT_EQ(Take(), 8192u);
  EXPECT_EQ(chunk_->resident_bytes(), 5 * kPage);
  EXPECT_EQ(chunk_->idle_bytes(), 0u);
}

TEST_F(ChunkTest, TwoSlotsTakenBeforeCommit_CountTheirSharedPageOnce) {
  Reserve(6 << 10, 100);
  const Chunk::Taken first = chunk_->Take(), second = chunk_->Take();
  EXPECT_EQ(first.missing_bytes + second.missing_bytes, 3 * kPage);
  ASSERT_TRUE(chunk_->Commit(second.slot));
  ASSERT_TRUE(chunk_->Commit(first.slot));
  EXPECT_EQ(chunk_->resident_bytes(), 3 * kPage);
}

TEST_F(ChunkTest, FreedSlot_IsTakenAgainWithItsMemory) {
  Reserve(6 << 10, 100);
  Take();
  Take();
  chunk_->Free(slots_[0]);
  EXPECT_TRUE(chunk_->has_ready());
  EXPECT_EQ(chunk_->idle_bytes(), kPage);  // page 1 is the other slot's, too
  EXPECT_EQ(Take(), 0u);
  EXPECT_EQ(slots_[2], slots_[0]);
  EXPECT_EQ(chunk_->idle_bytes(), 0u);
}

TEST_F(ChunkTest, ReleaseIdle_KeepsPagesOfNeighbours) {
  Reserve(6 << 10, 100);
  Take();
  Take();
  std::memset(chunk_->data(slots_[0]), 1, 6 << 10);
  std::memset(chunk_->data(slots_[1]), 2, 6 << 10);
  chunk_->Free(slots_[0]);
  chunk_->ReleaseIdle();
  EXPECT_EQ(chunk_->resident_bytes(), 8192u);  // pages 1, 2
  EXPECT_EQ(chunk_->data(slots_[1])[0], std::byte{2});
  EXPECT_FALSE(chunk_->has_ready());
  chunk_->Free(slots_[1]);
  chunk_->ReleaseIdle();
  EXPECT_EQ(chunk_->resident_bytes(), 0u);
  EXPECT_TRUE(chunk_->empty());
}

TEST_F(ChunkTest, ReleasedPageBetweenTwoFreeSlots_IsMissingInBoth) {
  Reserve(6 << 10, 2);
  Take();
  Take();
  chunk_->Free(slots_[0]);
  chunk_->Free(slots_[1]);
  EXPECT_EQ(chunk_->idle_bytes(), 3 * kPage);
  chunk_->ReleaseIdle();  // the second slot's pages 1 and 2
  EXPECT_EQ(chunk_->idle_bytes(), kPage);
  EXPECT_EQ(Take(), kPage);
  EXPECT_EQ(Take(), kPage);
}

TEST_F(ChunkTest, ReleaseIdle_GivesMemoryBackToTheSystem) {
  constexpr size_t kBytes = 1 << 20;
  Reserve(kBytes, 8);
  Take();
  std::byte* data = chunk_->data(slots_[0]);
  std::memset(data, 1, kBytes);
  EXPECT_EQ(ResidentPages(data, kBytes), kBytes / kPage);
  chunk_->Free(slots_[0]);
  chunk_->ReleaseIdle();
  EXPECT_EQ(ResidentPages(data, kBytes), 0u);
}

TEST_F(ChunkTest, WrittenSlot_MakesNothingElseResident) {
  constexpr size_t kBytes = 1 << 20;
  Reserve(kBytes, 8);
  Take();
  std::memset(chunk_->data(slots_[0]), 1, kBytes);
  EXPECT_EQ(ResidentPages(chunk_->data(slots_[0]) + kBytes, 7 * kBytes), 0u);
}

TEST_F(ChunkTest, SmallSlots_ShareOnePageManyTimes) {
  Reserve(64, 64);
  EXPECT_EQ(Take(), kPage);
  for (int i = 1; i < 64; ++i) EXPECT_EQ(Take(), 0u);
  for (uint32_t slot = 0; slot < 63; ++slot) chunk_->Free(slot);
  EXPECT_EQ(chunk_->idle_bytes(), 0u);
  chunk_->Free(63);
  EXPECT_EQ(chunk_->idle_bytes(), kPage);
  chunk_->ReleaseIdle();
  EXPECT_EQ(chunk_->resident_bytes(), 0u);
  EXPECT_FALSE(chunk_->has_ready());
}

TEST(Chunk, LargeGranule_MakesALargeChunk) {
  StrictSpace space(size_t{16} << 20, 0);
  const auto chunk = Chunk::Reserve(&space, size_t{4} << 20, 100000);
  int slots = 0;
  for (; chunk->has_fresh(); ++slots) chunk->Take();
  EXPECT_EQ(slots, 512 * 4);
}

TEST(Chunk, LargeGranule_HoldsTheSmallestSlots) {
  StrictSpace space(size_t{2} << 20, size_t{2} << 20);
  const auto chunk = Chunk::Reserve(&space, 64, 100000);
  for (size_t i = 0; i < Chunk::kMaxSlots; ++i) ASSERT_TRUE(chunk->Commit(chunk->Take().slot));
  EXPECT_EQ(chunk->resident_bytes(), size_t{2} << 20);
  for (uint32_t slot = 0; slot < Chunk::kMaxSlots; ++slot) {
    EXPECT_EQ(chunk->idle_bytes(), 0u);
    chunk->Free(slot);
  }
  EXPECT_EQ(chunk->idle_bytes(), size_t{2} << 20);
}

TEST(Chunk, Commit_SpaceIsExhausted_KeepsWhatHasCome) {
  StrictSpace space(4096, 3 * 4096);
  const auto chunk = Chunk::Reserve(&space, 10 << 10, 2);
  const Chunk::Taken first = chunk->Take(), second = chunk->Take();
  EXPECT_TRUE(chunk->Commit(first.slot));
  EXPECT_FALSE(chunk->Commit(second.slot));
  chunk->Free(second.slot);
  EXPECT_EQ(chunk->resident_bytes(), 3 * kPage);
  EXPECT_FALSE(chunk->has_ready());
  chunk->Free(first.slot);
  EXPECT_EQ(chunk->idle_bytes(), 3 * kPage);
}

// Against an account that recounts everything from what is live and what is committed.
TEST(Chunk, RandomSteps_AccountIsExact) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  constexpr size_t kGranule = 4096;
  for (size_t slot_bytes : {size_t{64}, size_t{1472}, size_t{4096}, size_t{6144}, size_t{20032}}) {
    StrictSpace space(kGranule, uint64_t{1} << 30);
    const auto chunk = Chunk::Reserve(&space, slot_bytes, 50);
    std::vector<uint32_t> live;
    for (int step = 0; step < 3000; ++step) {
      const uint64_t dice = random() % 5;
      if (dice < 2 && (chunk->has_ready() || chunk->has_fresh())) {
        const size_t before = chunk->resident_bytes();
        const Chunk::Taken taken = chunk->Take();
        ASSERT_TRUE(chunk->Commit(taken.slot));
        ASSERT_EQ(chunk->resident_bytes(), before + taken.missing_bytes);
        std::memset(chunk->data(taken.slot), 1, slot_bytes);
        live.push_back(taken.slot);
      } else if (dice < 4 && !live.empty()) {
        std::swap(live[random() % live.size()], live.back());
        chunk->Free(live.back());
        live.pop_back();
      } else if (chunk->idle_bytes() > 0) {
        chunk->ReleaseIdle();
      }
      std::vector<bool> used((50 * slot_bytes) / kGranule + 1);
      for (uint32_t slot : live) {
        const size_t last = (slot * slot_bytes + slot_bytes - 1) / kGranule;
        for (size_t i = slot * slot_bytes / kGranule; i <= last; ++i) used[i] = true;
      }
      size_t used_granules = 0;
      for (bool one : used) used_granules += one ? 1 : 0;
      ASSERT_EQ(chunk->resident_bytes(), space.committed_bytes());
      ASSERT_EQ(chunk->resident_bytes() - chunk->idle_bytes(), used_granules * kGranule);
    }
  }
}

}  // namespace
}  // namespace fq
