#include "server/store/lru_list.h"

#include <gtest/gtest.h>

#include "server/store/slab_entry.h"

namespace fq {
namespace {

TEST(LruList, PushAndRemove_KeepsTheOrder) {
  LruList list(&SlabEntry::slab_links);
  SlabEntry a({}, {}), b({}, {}), c({}, {});
  EXPECT_EQ(list.oldest(), nullptr);
  list.PushNewest(&a);
  list.PushNewest(&b);
  list.PushNewest(&c);
  EXPECT_EQ(list.oldest(), &a);
  list.Remove(&b);
  list.Remove(&a);
  EXPECT_EQ(list.oldest(), &c);
  list.PushNewest(&a);
  list.Remove(&c);
  EXPECT_EQ(list.oldest(), &a);
  list.Remove(&a);
  EXPECT_EQ(list.oldest(), nullptr);
  EXPECT_EQ(list.size(), 0u);
}

TEST(LruList, RemoveUnlinked_HasNoEffect) {
  LruList list(&SlabEntry::slab_links);
  SlabEntry a({}, {}), b({}, {});
  list.PushNewest(&a);
  list.Remove(&b);
  EXPECT_EQ(list.size(), 1u);
}

TEST(LruList, TwoLists_UseHooksOfTheirOwn) {
  LruList slabs(&SlabEntry::slab_links), refinements(&SlabEntry::refinement_links);
  SlabEntry a({}, {});
  slabs.PushNewest(&a);
  refinements.PushNewest(&a);
  refinements.Remove(&a);
  EXPECT_EQ(slabs.oldest(), &a);
}

}  // namespace
}  // namespace fq
