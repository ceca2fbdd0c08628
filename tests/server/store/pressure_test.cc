// Who goes first when memory is short.
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "server/store/store.h"

namespace fq {
namespace {

constexpr size_t kBytes = 64 << 10;

SlabKey Key(uint8_t n) {
  SlabKey key;
  key.block[0] = n;
  return key;
}

absl::Status Put(Store& store, uint8_t n, size_t primary_bytes, size_t refinement_bytes) {
  auto room = store.Reserve(Key(n), SlabTag{}, primary_bytes, refinement_bytes);
  if (room.ok()) std::move(*room).Publish();
  return room.status();
}

std::unique_ptr<Store> StoreOf(uint64_t capacity_bytes) {
  return Store::Create({capacity_bytes, 16}).value();
}

TEST(Pressure, OneSizeTookEverything_AnotherSizeEvictsOnlyWhatItNeeds) {
  const auto store = StoreOf(64 * kBytes);
  for (uint8_t n = 0; n < 64; ++n) ASSERT_TRUE(Put(*store, n, kBytes, 0).ok());
  ASSERT_TRUE(Put(*store, 100, 4 * kBytes, 0).ok());
  EXPECT_EQ(store->Stats().evicted_slabs, 4u);
  ASSERT_TRUE(Put(*store, 101, kBytes / 2, 0).ok());
  EXPECT_EQ(store->Stats().evicted_slabs, 5u);
  EXPECT_TRUE(store->CheckInvariants().ok()) << store->CheckInvariants();
}

TEST(Pressure, Refused_NothingIsEvictedOrCounted) {
  const auto store = StoreOf(4 * kBytes);
  for (uint8_t n = 0; n < 4; ++n) ASSERT_TRUE(Put(*store, n, kBytes / 2, kBytes / 2).ok());
  const auto room = store->Reserve(Key(9), SlabTag{}, kBytes, 0, Pressure::kRefuse);
  EXPECT_TRUE(absl::IsResourceExhausted(room.status())) << room.status();
  EXPECT_EQ(store->Stats().evicted_slabs + store->Stats().dropped_refinements, 0u);
  EXPECT_EQ(store->Stats().rejected_full, 0u);
  EXPECT_EQ(store->Stats().reserved_slabs, 0u);
  EXPECT_TRUE(Put(*store, 9, kBytes, 0).ok());  // under pressure
  ASSERT_TRUE(store->Erase(Key(9)));
  EXPECT_TRUE(store->Reserve(Key(8), SlabTag{}, kBytes, 0, Pressure::kRefuse).ok());
  EXPECT_TRUE(store->CheckInvariants().ok()) << store->CheckInvariants();
}

TEST(Pressure, SizesThatShareMemoryPages_LoseLittle) {
  // 25,000 bytes is no multiple of a memory page: neighbours share pages.
  const auto store = StoreOf(100 * 25024);
  for (uint8_t n = 0; n < 100; ++n) ASSERT_TRUE(Put(*store, n, 25000, 0).ok());
  EXPECT_GE(store->Stats().slabs, 99u);
  for (uint8_t n = 100; n < 200; ++n) ASSERT_TRUE(Put(*store, n, 13000, 0).ok());
  EXPECT_GE(store->Stats().used_bytes, store->Stats().capacity_bytes * 95 / 100);
  EXPECT_TRUE(store->CheckInvariants().ok()) << store->CheckInvariants();
}

TEST(Pressure, RefinementOfAPinnedSlab_IsSkipped) {
  const auto store = StoreOf(4 * kBytes);
  ASSERT_TRUE(Put(*store, 0, kBytes, kBytes).ok());
  ASSERT_TRUE(Put(*store, 1, kBytes, kBytes).ok());
  const Pin pin = store->Find(Key(0));
  ASSERT_TRUE(Put(*store, 2, kBytes, 0).ok());
  EXPECT_FALSE(pin.refinement().empty());
  EXPECT_TRUE(store->Find(Key(1)).refinement().empty());
  EXPECT_EQ(store->Stats().evicted_slabs, 0u);
}

TEST(Pressure, RefinementDropped_KeepsThePlaceInTheOrder) {
  const auto store = StoreOf(4 * kBytes);
  ASSERT_TRUE(Put(*store, 0, kBytes, kBytes).ok());
  ASSERT_TRUE(Put(*store, 1, kBytes, 0).ok());
  ASSERT_TRUE(Put(*store, 2, kBytes, 0).ok());
  ASSERT_TRUE(Put(*store, 3, kBytes, 0).ok());  // takes the refinement of 0
  ASSERT_TRUE(Put(*store, 4, kBytes, 0).ok());  // takes 0, still the coldest
  EXPECT_FALSE(store->Find(Key(0)));
  EXPECT_TRUE(store->Find(Key(1)));
}

TEST(Pressure, SlabWithRefinement_NeedsRoomForBoth) {
  const auto store = StoreOf(4 * kBytes);
  for (uint8_t n = 0; n < 4; ++n) ASSERT_TRUE(Put(*store, n, kBytes, 0).ok());
  ASSERT_TRUE(Put(*store, 4, kBytes, kBytes).ok());
  EXPECT_EQ(store->Stats().evicted_slabs, 2u);
  EXPECT_FALSE(store->Find(Key(4)).refinement().empty());
}

TEST(Pressure, HotSlabs_OutliveAScan) {
  const auto store = StoreOf(8 * kBytes);
  for (uint8_t n = 0; n < 4; ++n) ASSERT_TRUE(Put(*store, n, kBytes, 0).ok());
  for (uint8_t n = 10; n < 100; ++n) {
    ASSERT_TRUE(Put(*store, n, kBytes, 0).ok());
    for (uint8_t hot = 0; hot < 4; ++hot) EXPECT_TRUE(store->Find(Key(hot))) << int{n};
  }
}

TEST(Pressure, PrefixFoundLast_OutlivesItsTail) {
  const auto store = StoreOf(4 * kBytes);
  std::vector<Pin> lease;
  for (uint8_t n = 0; n < 4; ++n) {
    ASSERT_TRUE(Put(*store, n, kBytes, 0).ok());
    lease.push_back(store->Find(Key(n)));
  }
  for (uint8_t n = 4; n-- > 0;) store->Find(Key(n));  // the lease goes on holding all of them
  lease.clear();                                      // the prefix is released first
  ASSERT_TRUE(Put(*store, 9, kBytes, 0).ok());
  EXPECT_TRUE(store->Find(Key(0)));
  EXPECT_FALSE(store->Find(Key(3)));
}

}  // namespace
}  // namespace fq
