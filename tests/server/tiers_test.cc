#include "server/tiers.h"

#include <gtest/gtest.h>

#include <cstring>
#include <optional>
#include <set>
#include <string>
#include <utility>

namespace fq {
namespace {

constexpr size_t kBytes = 4096;

SlabKey Key(uint8_t n) {
  SlabKey key;
  key.block[0] = n;
  return key;
}

std::unique_ptr<Tiers> HostOnly() {
  return Tiers::Create({StoreOptions{1 << 20, 4}, std::nullopt}).value();
}

// The device's store is host memory here: Tiers never touches bytes.
std::unique_ptr<Tiers> Both() {
  return Tiers::Create({StoreOptions{1 << 20, 4}, StoreOptions{1 << 20, 4}}).value();
}

absl::Status Put(Tiers& tiers, Tier tier, uint8_t n, size_t refinement_bytes) {
  auto room = tiers.Reserve(tier, Key(n), SlabTag{n, 0, 0, 64}, kBytes, refinement_bytes);
  if (!room.ok()) return room.status();
  std::memset(room->primary().data(), n, kBytes);
  std::move(*room).Publish();
  return absl::OkStatus();
}

TEST(Tiers_Create, BadOption_NamesIt) {
  const StoreOptions good{1 << 20, 4}, bad{1 << 20, 3};
  EXPECT_TRUE(absl::IsInvalidArgument(Tiers::Create({bad, std::nullopt}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Tiers::Create({good, bad}).status()));
}

TEST(Tiers, WithoutDevice_HostTierServes) {
  const auto tiers = HostOnly();
  EXPECT_FALSE(tiers->has_device());
  EXPECT_TRUE(absl::IsFailedPrecondition(Put(*tiers, Tier::kDevice, 1, 0)));
  ASSERT_TRUE(Put(*tiers, Tier::kHost, 1, 0).ok());
  const Pin pin = tiers->Find(Key(1));
  ASSERT_TRUE(pin);
  EXPECT_TRUE(absl::IsFailedPrecondition(tiers->ReserveCopy(pin).status()));
  EXPECT_EQ(tiers->Stats().host.slabs, 1u);
  EXPECT_EQ(tiers->Stats().device.capacity_bytes, 0u);
  EXPECT_TRUE(tiers->Erase(Key(1)));
  EXPECT_FALSE(tiers->Erase(Key(1)));
  EXPECT_FALSE(tiers->Find(Key(1)));
}

TEST(Tiers, Reserve_HeldByTheOtherTier_AlreadyExists) {
  const auto tiers = Both();
  ASSERT_TRUE(Put(*tiers, Tier::kHost, 1, 0).ok());
  EXPECT_TRUE(absl::IsAlreadyExists(Put(*tiers, Tier::kDevice, 1, 0)));
  auto filling = tiers->Reserve(Tier::kDevice, Key(2), SlabTag{}, kBytes, 0);
  ASSERT_TRUE(filling.ok());
  EXPECT_TRUE(absl::IsAlreadyExists(Put(*tiers, Tier::kHost, 2, 0)));
  filling = absl::CancelledError();  // given up: the key is free again
  EXPECT_TRUE(Put(*tiers, Tier::kHost, 2, 0).ok());
}

TEST(Tiers, Copy_Published_IsFoundOnTheDevice) {
  const auto tiers = Both();
  ASSERT_TRUE(Put(*tiers, Tier::kHost, 1, kBytes).ok());
  const Pin host = tiers->Find(Key(1));
  auto room = tiers->ReserveCopy(host);
  ASSERT_TRUE(room.ok()) << room.status();
  EXPECT_EQ(room->primary().size(), kBytes);
  EXPECT_EQ(room->refinement().size(), kBytes);
  EXPECT_TRUE(absl::IsAlreadyExists(tiers->ReserveCopy(host).status()));
  EXPECT_EQ(tiers->Find(Key(1)).primary().data(), host.primary().data());
  const Pin copy = std::move(*room).Publish();
  EXPECT_EQ(copy.tag().block_index, 1u);
  EXPECT_EQ(tiers->Find(Key(1)).primary().data(), copy.primary().data());
  EXPECT_EQ(tiers->Stats().promoted_slabs, 1u);
  EXPECT_EQ(tiers->Stats().promoted_bytes, 2 * kBytes);
}

TEST(Tiers, Erase_InBothTiers_LeavesNeither) {
  const auto tiers = Both();
  ASSERT_TRUE(Put(*tiers, Tier::kHost, 1, 0).ok());
  tiers->ReserveCopy(tiers->Find(Key(1))).value().Publish();
  EXPECT_TRUE(tiers->Erase(Key(1)));
  EXPECT_FALSE(tiers->Find(Key(1)));
  EXPECT_EQ(tiers->Stats().host.used_bytes + tiers->Stats().device.used_bytes, 0u);
}

TEST(Tiers, DropRefinement_InBothTiers_DropsBoth) {
  const auto tiers = Both();
  ASSERT_TRUE(Put(*tiers, Tier::kHost, 1, kBytes).ok());
  tiers->ReserveCopy(tiers->Find(Key(1))).value().Publish();
  EXPECT_TRUE(tiers->DropRefinement(Key(1)));
  EXPECT_FALSE(tiers->DropRefinement(Key(1)));
  EXPECT_EQ(tiers->Stats().host.dropped_refinements, 1u);
  EXPECT_EQ(tiers->Stats().device.dropped_refinements, 1u);
}

TEST(Tiers, Erase_WhileACopyIsFilled_ReachesTheCopy) {
  const auto tiers = Both();
  ASSERT_TRUE(Put(*tiers, Tier::kHost, 1, 0).ok());
  auto room = tiers->ReserveCopy(tiers->Find(Key(1)));
  EXPECT_TRUE(tiers->Erase(Key(1)));
  EXPECT_FALSE(tiers->Erase(Key(1)));
  {
    const Pin copy = std::move(*room).Publish();
    EXPECT_TRUE(copy);
    EXPECT_FALSE(tiers->Find(Key(1)));
    EXPECT_TRUE(tiers->CheckInvariants().ok()) << tiers->CheckInvariants();
  }
  EXPECT_EQ(tiers->Stats().device.used_bytes, 0u);
}

TEST(Tiers, Erase_WhileACopyIsFilled_FreesTheKeyAtOnce) {
  const auto tiers = Both();
  for (Tier tier : {Tier::kDevice, Tier::kHost}) {
    ASSERT_TRUE(Put(*tiers, Tier::kHost, 1, 0).ok());
    auto room = tiers->ReserveCopy(tiers->Find(Key(1)));
    EXPECT_TRUE(tiers->Erase(Key(1)));
    EXPECT_TRUE(Put(*tiers, tier, 1, 0).ok());
    const std::byte* other = tiers->Find(Key(1)).primary().data();
    std::move(*room).Publish();
    EXPECT_EQ(tiers->Find(Key(1)).primary().data(), other);
    EXPECT_TRUE(tiers->Erase(Key(1)));
  }
  EXPECT_EQ(tiers->Stats().device.used_bytes, 0u);
}

TEST(Tiers, DropRefinement_WhileACopyIsFilled_ReachesTheCopy) {
  const auto tiers = Both();
  ASSERT_TRUE(Put(*tiers, Tier::kHost, 1, kBytes).ok());
  auto room = tiers->ReserveCopy(tiers->Find(Key(1)));
  EXPECT_TRUE(tiers->DropRefinement(Key(1)));
  std::move(*room).Publish();
  EXPECT_TRUE(tiers->Find(Key(1)).refinement().empty());
  EXPECT_EQ(tiers->Stats().device.dropped_refinements, 1u);
}

TEST(Tiers, Copy_OfAnErasedSlab_IsRefused) {
  const auto tiers = Both();
  ASSERT_TRUE(Put(*tiers, Tier::kHost, 1, 0).ok());
  const Pin pin = tiers->Find(Key(1));
  tiers->Erase(Key(1));
  EXPECT_TRUE(absl::IsNotFound(tiers->ReserveCopy(pin).status()));
}

TEST(Tiers, Copy_OfASlabThatLosesItsRefinement_HasNone) {
  const auto tiers = Both();
  ASSERT_TRUE(Put(*tiers, Tier::kHost, 1, kBytes).ok());
  const Pin pin = tiers->Find(Key(1));
  tiers->DropRefinement(Key(1));
  EXPECT_TRUE(tiers->ReserveCopy(pin)->refinement().empty());
}

TEST(Tiers, ForEachKey_SeesEachKeyOnce) {
  const auto tiers = Both();
  for (uint8_t n = 0; n < 4; ++n) ASSERT_TRUE(Put(*tiers, Tier::kHost, n, 0).ok());
  ASSERT_TRUE(Put(*tiers, Tier::kDevice, 4, 0).ok());
  tiers->ReserveCopy(tiers->Find(Key(2))).value().Publish();
  std::multiset<int> seen;
  tiers->ForEachKey(0, [&](const SlabKey& key) {
    seen.insert(key.block[0]);
    tiers->Erase(key);  // a visitor may call the tiers
  });
  EXPECT_EQ(seen, (std::multiset<int>{0, 1, 2, 3, 4}));
  EXPECT_EQ(tiers->Stats().host.slabs + tiers->Stats().device.slabs, 0u);
}

TEST(Tiers, DropDevice_LeavesTheHost) {
  const auto tiers = Both();
  ASSERT_TRUE(Put(*tiers, Tier::kHost, 1, 0).ok());
  ASSERT_TRUE(Put(*tiers, Tier::kDevice, 2, 0).ok());
  tiers->ReserveCopy(tiers->Find(Key(1))).value().Publish();
  const Pin pin = tiers->Find(Key(2));
  auto filling = tiers->Reserve(Tier::kDevice, Key(3), SlabTag{}, kBytes, 0);
  tiers->DropDevice();
  EXPECT_FALSE(tiers->has_device());
  EXPECT_FALSE(tiers->Find(Key(2)));
  EXPECT_TRUE(tiers->Find(Key(1)));
  EXPECT_EQ(pin.primary()[0], std::byte{2});
  std::move(*filling).Publish();
  EXPECT_FALSE(tiers->Find(Key(3)));
  EXPECT_TRUE(absl::IsFailedPrecondition(Put(*tiers, Tier::kDevice, 4, 0)));
  EXPECT_TRUE(Put(*tiers, Tier::kHost, 2, 0).ok());
}

}  // namespace
}  // namespace fq
