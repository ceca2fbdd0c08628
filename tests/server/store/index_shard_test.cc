#include "server/store/index_shard.h"

#include <gtest/gtest.h>

namespace fq {
namespace {

std::shared_ptr<SlabEntry> Entry(uint8_t n, size_t primary_bytes, size_t refinement_bytes) {
  SlabKey key;
  key.block[0] = n;
  auto entry = std::make_shared<SlabEntry>(key, SlabTag{});
  entry->primary.bytes = primary_bytes;
  entry->refinement.bytes = refinement_bytes;
  return entry;
}

std::shared_ptr<SlabEntry> Published(IndexShard& shard, uint8_t n, uint64_t tick) {
  auto entry = Entry(n, 128, 64);
  EXPECT_TRUE(shard.InsertFilling(entry));
  shard.Publish(*entry, tick);
  shard.Unpin(entry);
  return entry;
}

TEST(IndexShard, ColdestTick_IsTheOldestUnpinned) {
  IndexShard shard;
  EXPECT_FALSE(shard.ColdestTick(Victim::kSlab));
  const auto first = Published(shard, 1, 10);
  Published(shard, 2, 20);
  EXPECT_EQ(shard.ColdestTick(Victim::kSlab), 10u);
  const auto pin = shard.Pin(first->key, 30);
  EXPECT_EQ(shard.ColdestTick(Victim::kSlab), 20u);
  shard.Unpin(pin);
  EXPECT_EQ(shard.ColdestTick(Victim::kSlab), 20u);
  EXPECT_EQ(shard.ColdestTick(Victim::kRefinement), 20u);
  shard.TakeColdest(Victim::kSlab);
  EXPECT_EQ(shard.ColdestTick(Victim::kSlab), 30u);
}

TEST(IndexShard, Pin_OfAPinnedSlab_IsAUseToo) {
  IndexShard shard;
  const auto first = Published(shard, 1, 10);
  Published(shard, 2, 20);
  const auto lease = shard.Pin(first->key, 15);
  shard.Unpin(shard.Pin(first->key, 30));
  shard.Unpin(lease);
  EXPECT_EQ(shard.ColdestTick(Victim::kSlab), 20u);
}

TEST(IndexShard, Pin_WithoutTick_IsNoUse) {
  IndexShard shard;
  const auto first = Published(shard, 1, 10);
  Published(shard, 2, 20);
  shard.Unpin(shard.Pin(first->key, std::nullopt));
  EXPECT_EQ(shard.ColdestTick(Victim::kSlab), 10u);
  shard.Unpin(shard.Pin(first->key, 30));
  EXPECT_EQ(shard.ColdestTick(Victim::kSlab), 20u);
}

TEST(IndexShard, TakeColdest_HandsOutItsExtents) {
  IndexShard shard;
  const auto entry = Published(shard, 1, 10);
  EXPECT_EQ(shard.TakeColdest(Victim::kRefinement)->stored_bytes(), 64u);
  EXPECT_FALSE(shard.TakeColdest(Victim::kRefinement));
  EXPECT_EQ(shard.TakeColdest(Victim::kSlab)->stored_bytes(), 128u);
  EXPECT_FALSE(shard.TakeColdest(Victim::kSlab));
  EXPECT_EQ(shard.Pin(entry->key, 11), nullptr);
  EXPECT_EQ(shard.Totals().evictable_bytes, 0u);
}

TEST(IndexShard, Erase_Pinned_FreesWithTheLastPin) {
  IndexShard shard;
  const auto entry = Published(shard, 1, 10);
  shard.Pin(entry->key, 11);
  shard.Pin(entry->key, 11);
  EXPECT_EQ(shard.Erase(entry->key)->stored_bytes(), 0u);
  EXPECT_EQ(shard.Unpin(entry).stored_bytes(), 0u);
  EXPECT_EQ(shard.Unpin(entry).stored_bytes(), 192u);
  EXPECT_EQ(shard.Totals().pinned_slabs, 0u);
}

TEST(IndexShard, Erase_PinnedWithDropPending_FreesBoth) {
  IndexShard shard;
  const auto entry = Published(shard, 1, 10);
  shard.Pin(entry->key, 11);
  EXPECT_TRUE(shard.DropRefinement(entry->key));
  EXPECT_TRUE(shard.Erase(entry->key));
  EXPECT_EQ(shard.Unpin(entry).stored_bytes(), 192u);
}

TEST(IndexShard, Filling_IsNeitherFoundNorErasedNorEvicted) {
  IndexShard shard;
  const auto entry = Entry(1, 128, 64);
  EXPECT_TRUE(shard.InsertFilling(entry));
  EXPECT_FALSE(shard.InsertFilling(entry));
  EXPECT_EQ(shard.Pin(entry->key, 11), nullptr);
  EXPECT_FALSE(shard.Erase(entry->key));
  EXPECT_FALSE(shard.DropRefinement(entry->key));
  EXPECT_FALSE(shard.TakeColdest(Victim::kSlab));
  EXPECT_EQ(shard.Abandon(*entry).stored_bytes(), 192u);
  EXPECT_EQ(shard.Totals().reserved_slabs, 0u);
}

}  // namespace
}  // namespace fq
