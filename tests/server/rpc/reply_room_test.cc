#include "server/rpc/reply_room.h"

#include <gtest/gtest.h>

#include "server/retry_after.h"
#include "tests/testing/running_node.h"

namespace fq {
namespace {

namespace wire = ::flashquant::v1;

TEST(ReplyRoom, UsedUp_WhoHasMoreThanItsShareIsRefused) {
  ReplyRoom room(100);
  EXPECT_TRUE(room.Take("a", 90).ok());
  EXPECT_TRUE(room.Take("b", 30).ok());  // nothing left, but less than half
  const absl::Status refused = room.Take("a", 1);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refused.message(),
            "max-message-bytes: replies of 120 bytes are not taken yet, 90 of them by this "
            "connection, and 1 more would come: at most 100");
  EXPECT_TRUE(RetryAfterMs(refused).has_value());
  EXPECT_FALSE(room.Take("b", 21).ok());
  room.Give("a", 90);
  EXPECT_EQ(room.held(), 30u);
  EXPECT_TRUE(room.Take("b", 70).ok());
  room.Give("b", 100);
  EXPECT_EQ(room.held(), 0u);
}

TEST(ReplyRoom, AloneAndMoreThanTheRoom_IsRefusedAndHoldsNothing) {
  ReplyRoom room(100);
  EXPECT_FALSE(room.Take("a", 101).ok());
  EXPECT_TRUE(room.Take("a", 100).ok());
  room.Give("nobody", 5);
  EXPECT_EQ(room.held(), 100u);
}

// Many replies one after the other: each gives back what it took once it is out.
TEST(ReplyRoom, RepliesThatAreTaken_GiveTheirRoomBack) {
  RunningNode node([](Options& o) {
    o.max_inline_bytes = 4 * kTestBlockBytes;
    o.max_message_bytes = 8 * kTestBlockBytes;
  });
  TestClient client(node);
  const auto found = client.StoreAndLookup(TestKeys("a", 4), TestPages(node.codec_set(), 4, 1),
                                           wire::PROFILE_EXACT);
  for (int i = 0; i < 20; ++i) {
    // A reply gives its room back when gRPC is done with it, which may be after it has arrived.
    ASSERT_TRUE(Eventually([&] {
      wire::LoadResponse reply;
      return client.Load(client.LoadOf(found.lease_id(), 4), reply).ok() &&
             reply.payload().size() == 4 * kTestBlockBytes;
    })) << i;
  }
}

}  // namespace
}  // namespace fq
