#include "server/store/store.h"

#include <gtest/gtest.h>

#include <utility>

namespace fq {
namespace {

TEST(Store_Create, CapacityTooSmall_NamesBothValues) {
  const auto store = Store::Create({4095, 16});
  EXPECT_EQ(store.status().message(), "capacity_bytes is 4095, must be at least 4096");
  EXPECT_TRUE(Store::Create({4096, 16}).ok());
}

TEST(Store_Create, ShardsNotAPowerOfTwo_NamesBothValues) {
  for (uint32_t shards : {0u, 3u, 2048u}) {
    const auto store = Store::Create({1 << 20, shards});
    EXPECT_TRUE(absl::IsInvalidArgument(store.status())) << shards;
  }
  EXPECT_EQ(Store::Create({1 << 20, 3}).status().message(),
            "shards is 3, must be a power of two of at most 1024");
  EXPECT_TRUE(Store::Create({1 << 20, 1024}).ok());
}

TEST(Reservation, Empty_HasNoBytes) {
  Reservation empty;
  EXPECT_TRUE(empty.primary().empty());
  EXPECT_TRUE(empty.refinement().empty());
  std::move(empty).Publish();
}

TEST(Reservation, Moved_PublishesOnce) {
  const auto store = Store::Create({1 << 20, 4}).value();
  auto room = store->Reserve(SlabKey{}, SlabTag{}, 100, 0);
  ASSERT_TRUE(room.ok());
  Reservation moved = *std::move(room);
  std::move(moved).Publish();
  EXPECT_EQ(store->Stats().slabs, 1u);
  EXPECT_EQ(store->Stats().reserved_slabs, 0u);
}

TEST(Reservation, Published_CannotVanishWhileItsPinIsHeld) {
  const auto store = Store::Create({64 << 10, 1}).value();  // room for one
  Pin pin = store->Reserve(SlabKey{}, SlabTag{}, 60 << 10, 0).value().Publish();
  EXPECT_EQ(store->Stats().pinned_slabs, 1u);
  const SlabKey other{1, {}};
  EXPECT_EQ(store->Reserve(other, SlabTag{}, 60 << 10, 0).status().code(),
            absl::StatusCode::kResourceExhausted);
  pin = Pin();
  EXPECT_TRUE(store->Reserve(other, SlabTag{}, 60 << 10, 0).ok());
  EXPECT_FALSE(store->Find(SlabKey{}));
}

TEST(Pin, Moved_PinsOnce) {
  const auto store = Store::Create({1 << 20, 4}).value();
  auto room = store->Reserve(SlabKey{}, SlabTag{}, 100, 0);
  std::move(*room).Publish();
  Pin first = store->Find(SlabKey{});
  Pin second = std::move(first);
  EXPECT_FALSE(first);
  EXPECT_TRUE(second);
  EXPECT_EQ(store->Stats().pinned_slabs, 1u);
  second = Pin();
  EXPECT_EQ(store->Stats().pinned_slabs, 0u);
}

}  // namespace
}  // namespace fq
