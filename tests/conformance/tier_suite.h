// What every tier of a node promises, as one typed suite. A tier adds one file that names a type
// with `static auto Make(uint64_t capacity_bytes)`, which returns a pointer to something with the
// functions of server/store/store.h, and `static constexpr size_t kScale`, by which all sizes are
// multiplied (1: slabs of 64 KiB + 32 KiB, which must fill whole granules of its memory), and
// instantiates TierSuite with it. TierStress (one file beside) is the same from many threads.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "server/store/store.h"
#include "tests/conformance/described_payload.h"

namespace fq::conformance {

inline SlabKey KeyOf(uint32_t slab) {
  SlabKey key;
  key.scope = slab % 3;
  for (size_t i = 0; i < 4; ++i) key.block[i] = static_cast<uint8_t>(slab >> (8 * i));
  return key;
}

template <typename Tier>
class TierSuite : public testing::Test {
 protected:
  static constexpr size_t kPrimaryBytes = Tier::kScale * (64 << 10);
  static constexpr size_t kRefinementBytes = Tier::kScale * (32 << 10);

  // Stores a described slab; its refinement is described by the next version.
  template <typename Store>
  static absl::Status Put(Store& store, uint32_t slab, uint16_t version, size_t refinement_bytes) {
    auto room =
        store.Reserve(KeyOf(slab), SlabTag{slab, 1, 2, 64}, kPrimaryBytes, refinement_bytes);
    if (!room.ok()) return room.status();
    Describe({slab, version}, room->primary());
    Describe({slab, static_cast<uint16_t>(version + 1)}, room->refinement());
    std::move(*room).Publish();
    return absl::OkStatus();
  }
};

TYPED_TEST_SUITE_P(TierSuite);

TYPED_TEST_P(TierSuite, Find_UnknownKey_IsEmpty) {
  auto store = TypeParam::Make(TypeParam::kScale << 20);
  EXPECT_FALSE(store->Find(KeyOf(1)));
  EXPECT_FALSE(store->Erase(KeyOf(1)));
  EXPECT_FALSE(store->DropRefinement(KeyOf(1)));
}

TYPED_TEST_P(TierSuite, Reserve_BeforePublish_IsInvisible) {
  auto store = TypeParam::Make(TypeParam::kScale << 20);
  auto room = store->Reserve(KeyOf(1), SlabTag{}, this->kPrimaryBytes, 0);
  ASSERT_TRUE(room.ok()) << room.status();
  EXPECT_FALSE(store->Find(KeyOf(1)));
  EXPECT_FALSE(store->Erase(KeyOf(1)));
  EXPECT_EQ(store->Stats().reserved_slabs, 1u);
  Describe({1, 1}, room->primary());
  std::move(*room).Publish();
  EXPECT_TRUE(store->Find(KeyOf(1)));
  EXPECT_EQ(store->Stats().reserved_slabs, 0u);
}

TYPED_TEST_P(TierSuite, Find_Published_GivesBytesAndTag) {
  auto store = TypeParam::Make(TypeParam::kScale << 20);
  ASSERT_TRUE(this->Put(*store, 7, 3, this->kRefinementBytes).ok());
  auto pin = store->Find(KeyOf(7));
  ASSERT_TRUE(pin);
  EXPECT_TRUE(pin.key() == KeyOf(7));
  EXPECT_EQ(pin.tag().block_index, 7u);
  EXPECT_EQ(pin.tag().tokens, 64);
  ASSERT_EQ(pin.primary().size(), this->kPrimaryBytes);
  ASSERT_EQ(pin.refinement().size(), this->kRefinementBytes);
  EXPECT_EQ(Mismatch({7, 3}, pin.primary()), "");
  EXPECT_EQ(Mismatch({7, 4}, pin.refinement()), "");
}

TYPED_TEST_P(TierSuite, Reservation_Abandoned_LeavesNothing) {
  auto store = TypeParam::Make(TypeParam::kScale << 20);
  { auto room = store->Reserve(KeyOf(1), SlabTag{}, this->kPrimaryBytes, 64); }
  EXPECT_FALSE(store->Find(KeyOf(1)));
  EXPECT_EQ(store->Stats().used_bytes, 0u);
  EXPECT_EQ(store->Stats().reserved_slabs, 0u);
  EXPECT_TRUE(this->Put(*store, 1, 1, 0).ok());
}

TYPED_TEST_P(TierSuite, Reservation_Assigned_FreesWhatItHeld) {
  auto store = TypeParam::Make(TypeParam::kScale << 20);
  auto first = store->Reserve(KeyOf(1), SlabTag{}, this->kPrimaryBytes, 0);
  auto second = store->Reserve(KeyOf(2), SlabTag{}, this->kPrimaryBytes, 0);
  ASSERT_TRUE(first.ok() && second.ok());
  *first = *std::move(second);
  EXPECT_EQ(store->Stats().reserved_slabs, 1u);
  std::move(*first).Publish();
  EXPECT_TRUE(store->Find(KeyOf(2)));
  EXPECT_FALSE(store->Find(KeyOf(1)));
}

TYPED_TEST_P(TierSuite, Reserve_SameKey_KeepsTheFirst) {
  auto store = TypeParam::Make(TypeParam::kScale << 20);
  auto filling = store->Reserve(KeyOf(1), SlabTag{}, this->kPrimaryBytes, 0);
  ASSERT_TRUE(filling.ok());
  EXPECT_TRUE(absl::IsAlreadyExists(this->Put(*store, 1, 9, 0)));
  Describe({1, 1}, filling->primary());
  std::move(*filling).Publish();
  EXPECT_TRUE(absl::IsAlreadyExists(this->Put(*store, 1, 9, 0)));
  EXPECT_EQ(Mismatch({1, 1}, store->Find(KeyOf(1)).primary()), "");
}

TYPED_TEST_P(TierSuite, Reserve_SameBlockOtherScope_IsAnotherSlab) {
  auto store = TypeParam::Make(TypeParam::kScale << 20);
  ASSERT_TRUE(this->Put(*store, 1, 1, 0).ok());
  SlabKey other = KeyOf(1);
  other.scope += 100;
  EXPECT_FALSE(store->Find(other));
  EXPECT_TRUE(store->Reserve(other, SlabTag{}, 64, 0).ok());
}

TYPED_TEST_P(TierSuite, Reserve_NoBytes_IsInvalid) {
  auto store = TypeParam::Make(TypeParam::kScale << 20);
  EXPECT_TRUE(absl::IsInvalidArgument(store->Reserve(KeyOf(1), SlabTag{}, 0, 64).status()));
  EXPECT_EQ(store->Stats().reserved_slabs, 0u);
}

TYPED_TEST_P(TierSuite, Pin_ErasedSlab_KeepsItsBytes) {
  auto store = TypeParam::Make(TypeParam::kScale << 20);
  ASSERT_TRUE(this->Put(*store, 1, 1, this->kRefinementBytes).ok());
  auto pin = store->Find(KeyOf(1));
  EXPECT_TRUE(store->Erase(KeyOf(1)));
  EXPECT_FALSE(store->Find(KeyOf(1)));
  EXPECT_FALSE(store->Erase(KeyOf(1)));
  ASSERT_TRUE(this->Put(*store, 1, 5, 0).ok());  // the key is free again
  EXPECT_EQ(Mismatch({1, 1}, pin.primary()), "");
  EXPECT_EQ(Mismatch({1, 2}, pin.refinement()), "");
  const uint64_t both_bytes = store->Stats().used_bytes;
  const uint64_t pinned_bytes = pin.stored_bytes();
  pin = {};
  EXPECT_EQ(store->Stats().used_bytes, both_bytes - pinned_bytes);
  EXPECT_EQ(Mismatch({1, 5}, store->Find(KeyOf(1)).primary()), "");
}

TYPED_TEST_P(TierSuite, Pin_DroppedRefinement_KeepsItUntilTheLastPin) {
  auto store = TypeParam::Make(TypeParam::kScale << 20);
  ASSERT_TRUE(this->Put(*store, 1, 1, this->kRefinementBytes).ok());
  auto first = store->Find(KeyOf(1));
  auto second = store->Find(KeyOf(1));
  EXPECT_TRUE(store->DropRefinement(KeyOf(1)));
  EXPECT_FALSE(store->DropRefinement(KeyOf(1)));
  first = {};
  EXPECT_EQ(Mismatch({1, 2}, second.refinement()), "");
  EXPECT_EQ(store->Stats().dropped_refinements, 0u);
  second = {};
  auto after = store->Find(KeyOf(1));
  EXPECT_TRUE(after.refinement().empty());
  EXPECT_EQ(Mismatch({1, 1}, after.primary()), "");
  EXPECT_EQ(store->Stats().dropped_refinements, 1u);
  EXPECT_EQ(store->Stats().dropped_refinement_bytes, this->kRefinementBytes);
}

TYPED_TEST_P(TierSuite, DropRefinement_Unpinned_FreesItAtOnce) {
  auto store = TypeParam::Make(TypeParam::kScale << 20);
  ASSERT_TRUE(this->Put(*store, 1, 1, this->kRefinementBytes).ok());
  const uint64_t before_bytes = store->Stats().used_bytes;
  EXPECT_TRUE(store->DropRefinement(KeyOf(1)));
  EXPECT_FALSE(store->DropRefinement(KeyOf(1)));
  EXPECT_EQ(store->Stats().used_bytes, before_bytes - this->kRefinementBytes);
}

TYPED_TEST_P(TierSuite, Pin_Evicted_NeverWhileHeld) {
  auto store = TypeParam::Make(4 * this->kPrimaryBytes);
  ASSERT_TRUE(this->Put(*store, 0, 1, 0).ok());
  auto pin = store->Find(KeyOf(0));
  for (uint32_t slab = 1; slab < 100; ++slab) ASSERT_TRUE(this->Put(*store, slab, 1, 0).ok());
  EXPECT_EQ(Mismatch({0, 1}, pin.primary()), "");
  EXPECT_TRUE(store->Find(KeyOf(0)));
  pin = {};
  for (uint32_t slab = 100; slab < 110; ++slab) ASSERT_TRUE(this->Put(*store, slab, 1, 0).ok());
  EXPECT_FALSE(store->Find(KeyOf(0)));
}

TYPED_TEST_P(TierSuite, Capacity_AtTheLimit_HoldsEverySlab) {
  constexpr uint32_t kSlabs = 16;
  auto store = TypeParam::Make(kSlabs * this->kPrimaryBytes);
  for (uint32_t slab = 0; slab < kSlabs; ++slab) ASSERT_TRUE(this->Put(*store, slab, 1, 0).ok());
  EXPECT_EQ(store->Stats().slabs, kSlabs);
  EXPECT_EQ(store->Stats().evicted_slabs, 0u);
  EXPECT_EQ(store->Stats().used_bytes, store->Stats().capacity_bytes);
}

TYPED_TEST_P(TierSuite, Capacity_OnePast_EvictsTheLeastRecentlyUsed) {
  auto store = TypeParam::Make(4 * this->kPrimaryBytes);
  for (uint32_t slab = 0; slab < 4; ++slab) ASSERT_TRUE(this->Put(*store, slab, 1, 0).ok());
  EXPECT_TRUE(store->Find(KeyOf(0)));  // a use
  ASSERT_TRUE(this->Put(*store, 4, 1, 0).ok());
  EXPECT_TRUE(store->Find(KeyOf(0)));
  EXPECT_FALSE(store->Find(KeyOf(1)));
  EXPECT_EQ(store->Stats().evicted_slabs, 1u);
  EXPECT_EQ(store->Stats().evicted_bytes, this->kPrimaryBytes);
}

TYPED_TEST_P(TierSuite, Capacity_AllPinned_IsExhausted) {
  auto store = TypeParam::Make(2 * this->kPrimaryBytes);
  ASSERT_TRUE(this->Put(*store, 0, 1, 0).ok());
  auto pin = store->Find(KeyOf(0));
  auto filling = store->Reserve(KeyOf(1), SlabTag{}, this->kPrimaryBytes, 0);
  ASSERT_TRUE(filling.ok());
  EXPECT_TRUE(absl::IsResourceExhausted(this->Put(*store, 2, 1, 0)));
  EXPECT_EQ(store->Stats().rejected_full, 1u);
  EXPECT_FALSE(store->Find(KeyOf(2)));
  pin = {};
  EXPECT_TRUE(this->Put(*store, 2, 1, 0).ok());
}

TYPED_TEST_P(TierSuite, Capacity_SlabThatCannotFit_EvictsNothing) {
  auto store = TypeParam::Make(4 * this->kPrimaryBytes);
  for (uint32_t slab = 0; slab < 4; ++slab) ASSERT_TRUE(this->Put(*store, slab, 1, 0).ok());
  auto pin = store->Find(KeyOf(3));
  const auto one_past = store->Reserve(KeyOf(9), SlabTag{}, 3 * this->kPrimaryBytes + 1, 0);
  EXPECT_TRUE(absl::IsResourceExhausted(one_past.status()));
  EXPECT_EQ(store->Stats().slabs, 4u);
  EXPECT_TRUE(store->Reserve(KeyOf(9), SlabTag{}, 3 * this->kPrimaryBytes, 0).ok());
}

TYPED_TEST_P(TierSuite, Pressure_Refinements_GoBeforeAnySlab) {
  auto store = TypeParam::Make(4 * (this->kPrimaryBytes + this->kRefinementBytes));
  for (uint32_t slab = 0; slab < 4; ++slab) {
    ASSERT_TRUE(this->Put(*store, slab, 1, this->kRefinementBytes).ok());
  }
  ASSERT_TRUE(this->Put(*store, 4, 1, 0).ok());  // needs two refinements
  EXPECT_EQ(store->Stats().slabs, 5u);
  EXPECT_EQ(store->Stats().dropped_refinements, 2u);
  EXPECT_TRUE(store->Find(KeyOf(1)).refinement().empty());
  EXPECT_EQ(Mismatch({2, 2}, store->Find(KeyOf(2)).refinement()), "");
  EXPECT_EQ(Mismatch({0, 1}, store->Find(KeyOf(0)).primary()), "");
}

TYPED_TEST_P(TierSuite, Accounting_EveryStep_AddsUp) {
  auto store = TypeParam::Make(TypeParam::kScale << 20);
  auto room = store->Reserve(KeyOf(1), SlabTag{}, 1000, 10);
  ASSERT_TRUE(room.ok());
  EXPECT_EQ(store->Stats().requested_bytes, 1010u);
  EXPECT_GE(store->Stats().used_bytes, 1010u);
  EXPECT_LT(store->Stats().used_bytes, 1010u + 2 * 64);
  std::move(*room).Publish();
  auto pin = store->Find(KeyOf(1));
  EXPECT_EQ(pin.stored_bytes(), store->Stats().used_bytes);
  EXPECT_EQ(store->Stats().pinned_slabs, 1u);
  EXPECT_TRUE(store->CheckInvariants().ok()) << store->CheckInvariants();
  EXPECT_TRUE(store->Erase(KeyOf(1)));
  EXPECT_EQ(store->Stats().slabs, 0u);
  EXPECT_EQ(store->Stats().pinned_slabs, 1u);
  EXPECT_TRUE(store->CheckInvariants().ok()) << store->CheckInvariants();
  pin = {};
  EXPECT_EQ(store->Stats().used_bytes, 0u);
  EXPECT_EQ(store->Stats().requested_bytes, 0u);
  EXPECT_TRUE(store->CheckInvariants().ok()) << store->CheckInvariants();
}

TYPED_TEST_P(TierSuite, ForEachKey_Scope_SeesItsPublishedSlabs) {
  auto store = TypeParam::Make(TypeParam::kScale << 22);
  for (uint32_t slab = 0; slab < 9; ++slab) ASSERT_TRUE(this->Put(*store, slab, 1, 0).ok());
  auto filling = store->Reserve(KeyOf(12), SlabTag{}, 64, 0);  // scope 0, not published
  std::set<int> seen;
  store->ForEachKey(0, [&](const SlabKey& key) {
    seen.insert(key.block[0]);
    store->Erase(key);  // a visitor may call the store
  });
  EXPECT_EQ(seen, (std::set<int>{0, 3, 6}));
  EXPECT_EQ(store->Stats().slabs, 6u);
}

REGISTER_TYPED_TEST_SUITE_P(TierSuite, Find_UnknownKey_IsEmpty, Reserve_BeforePublish_IsInvisible,
                            Find_Published_GivesBytesAndTag, Reservation_Abandoned_LeavesNothing,
                            Reservation_Assigned_FreesWhatItHeld, Reserve_SameKey_KeepsTheFirst,
                            Reserve_SameBlockOtherScope_IsAnotherSlab, Reserve_NoBytes_IsInvalid,
                            Pin_ErasedSlab_KeepsItsBytes,
                            Pin_DroppedRefinement_KeepsItUntilTheLastPin,
                            DropRefinement_Unpinned_FreesItAtOnce, Pin_Evicted_NeverWhileHeld,
                            Capacity_AtTheLimit_HoldsEverySlab,
                            Capacity_OnePast_EvictsTheLeastRecentlyUsed,
                            Capacity_AllPinned_IsExhausted,
                            Capacity_SlabThatCannotFit_EvictsNothing,
                            Pressure_Refinements_GoBeforeAnySlab, Accounting_EveryStep_AddsUp,
                            ForEachKey_Scope_SeesItsPublishedSlabs);

}  // namespace fq::conformance
