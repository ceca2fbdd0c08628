// An audit that cannot fail is worth nothing: each test breaks one thing behind the index's back.
#include <gtest/gtest.h>

#include <string>

#include "server/store/index_shard.h"

namespace fq {
namespace {

class IndexAudit : public testing::Test {
 protected:
  IndexAudit() {
    entry_->primary.bytes = 100;
    entry_->refinement.bytes = 10;
    shard_.InsertFilling(entry_);
    shard_.Publish(*entry_, 1);
    shard_.Unpin(entry_);
  }
  std::string Error() const { return std::string(shard_.Audit().status().message()); }

  IndexShard shard_;
  std::shared_ptr<SlabEntry> entry_ = std::make_shared<SlabEntry>(SlabKey{}, SlabTag{});
};

TEST_F(IndexAudit, Intact_GivesTheSums) {
  const auto audit = shard_.Audit();
  ASSERT_TRUE(audit.ok()) << audit.status();
  EXPECT_EQ(audit->stored_bytes, 128u + 64);
  EXPECT_EQ(audit->requested_bytes, 110u);
}

TEST_F(IndexAudit, DetachedSlab_StillCounts) {
  shard_.Pin(entry_->key, 2);
  shard_.Erase(entry_->key);
  EXPECT_EQ(shard_.Audit()->requested_bytes, 110u);
}

TEST_F(IndexAudit, PinNobodyTook_IsFound) {
  entry_->pins = 1;
  EXPECT_EQ(Error(), "index: pinned_slabs is 0, recounted 1");
}

TEST_F(IndexAudit, ExtentThatGrew_IsFound) {
  entry_->primary.bytes = 200;
  EXPECT_EQ(Error(), "index: evictable_bytes is 192, recounted 320");
}

TEST_F(IndexAudit, StateThatChanged_IsFound) {
  entry_->state = SlabEntry::State::kFilling;
  EXPECT_EQ(Error(), "index: published_slabs is 1, recounted 0");
}

TEST_F(IndexAudit, RefinementOutOfTheOrder_IsFound) {
  entry_->refinement.bytes = 0;
  entry_->primary.bytes = 192;
  EXPECT_EQ(Error(), "index: refinements in LRU order is 1, recounted 0");
}

}  // namespace
}  // namespace fq
