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
  EXPECT_EQ(shard.Abandon(entry).stored_bytes(), 192u);
  EXPECT_EQ(shard.Totals().reserved_slabs, 0u);
}

std::shared_ptr<SlabEntry> FillingCopy(IndexShard& shard, uint8_t n) {
  SlabKey key;
  key.block[0] = n;
  auto entry = std::make_shared<SlabEntry>(key, SlabTag{}, SlabEntry::Origin::kCopy);
  entry->primary.bytes = 128;
  entry->refinement.bytes = 64;
  EXPECT_TRUE(shard.InsertFilling(entry));
  return entry;
}

TEST(IndexShard, FillingCopy_Erased_FreesItsKeyAtOnce) {
  IndexShard shard;
  const auto copy = FillingCopy(shard, 1);
  EXPECT_TRUE(shard.Holds(copy->key));
  EXPECT_EQ(shard.Erase(copy->key)->stored_bytes(), 0u);
  EXPECT_FALSE(shard.Erase(copy->key));
  EXPECT_FALSE(shard.Holds(copy->key));
  const auto other = Published(shard, 1, 10);
  shard.Publish(*copy, 20);
  EXPECT_EQ(shard.Pin(copy->key, 30), other);
  EXPECT_TRUE(shard.Audit().ok()) << shard.Audit().status();
  EXPECT_EQ(shard.Unpin(copy).stored_bytes(), 192u);
  shard.Unpin(other);
  EXPECT_EQ(shard.Totals().published_slabs, 1u);
  EXPECT_EQ(shard.Totals().reserved_slabs, 0u);
  EXPECT_EQ(shard.Totals().pinned_slabs, 0u);
}

TEST(IndexShard, FillingCopy_ErasedAndAbandoned_IsGone) {
  IndexShard shard;
  const auto copy = FillingCopy(shard, 1);
  shard.Erase(copy->key);
  EXPECT_TRUE(shard.Audit().ok()) << shard.Audit().status();
  EXPECT_EQ(shard.Abandon(copy).stored_bytes(), 192u);
  EXPECT_EQ(shard.Totals().pinned_slabs, 0u);
  EXPECT_TRUE(shard.Audit().ok()) << shard.Audit().status();
}

TEST(IndexShard, FillingCopy_RefinementDropped_GoesWithItsLastPin) {
  IndexShard shard;
  const auto copy = FillingCopy(shard, 1);
  EXPECT_TRUE(shard.DropRefinement(copy->key));
  EXPECT_FALSE(shard.DropRefinement(copy->key));
  shard.Publish(*copy, 10);
  EXPECT_EQ(shard.Unpin(copy).stored_bytes(), 64u);
  EXPECT_TRUE(copy->refinement.empty());
}

TEST(IndexShard, ErasePinned_OnlyTheVerySlab) {
  IndexShard shard;
  const auto first = Published(shard, 1, 10);
  shard.Pin(first->key, 11);
  EXPECT_FALSE(shard.FateOf(*first).erased);
  EXPECT_TRUE(shard.ErasePinned(*first));
  EXPECT_TRUE(shard.FateOf(*first).erased);
  const auto second = Published(shard, 1, 12);
  EXPECT_FALSE(shard.ErasePinned(*first));
  EXPECT_EQ(shard.Unpin(first).stored_bytes(), 192u);
  EXPECT_EQ(shard.Pin(first->key, 13), second);
}

TEST(IndexShard, PinColdest_TakesThemInOrderOfUse) {
  IndexShard shard;
  const auto first = Published(shard, 1, 10);
  const auto second = Published(shard, 2, 20);
  shard.Unpin(shard.Pin(first->key, 30));
  EXPECT_EQ(shard.PinColdest(), second);
  EXPECT_EQ(shard.PinColdest(), first);
  EXPECT_EQ(shard.PinColdest(), nullptr);
  shard.Unpin(first);
  shard.Unpin(second);
  EXPECT_EQ(shard.ColdestTick(Victim::kSlab), 20u);  // not a use
}

}  // namespace
}  // namespace fq
