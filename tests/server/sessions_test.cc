#include "server/sessions.h"

#include <gtest/gtest.h>

namespace fq {
namespace {

SessionLimits TwoSessions() {
  SessionLimits limits;
  limits.max_sessions = 2;
  return limits;
}

class SessionRegistryTest : public testing::Test {
 protected:
  SessionRegistry registry_{TwoSessions(), SteadyNow};
  std::shared_ptr<const SlabSpace> space_ = std::make_shared<SlabSpace>();
};

TEST_F(SessionRegistryTest, Opened_IsFoundUntilClosed) {
  const auto session = *registry_.Open(space_, "team");
  EXPECT_EQ(*registry_.Find(session->id), session);
  registry_.Close(session->id);
  registry_.Close(session->id);
  EXPECT_EQ(registry_.Find(session->id).status().code(), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(session->leases.Add({}).status().code(), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(registry_.size(), 0u);
}

TEST_F(SessionRegistryTest, AtTheLimit_OneMoreIsRefusedUntilOneCloses) {
  const auto first = *registry_.Open(space_, "team");
  ASSERT_TRUE(registry_.Open(space_, "team").ok());
  const auto refused = registry_.Open(space_, "team");
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(refused.status().message().find("2 are open, at most 2"), absl::string_view::npos);
  registry_.Close(first->id);
  EXPECT_TRUE(registry_.Open(space_, "team").ok());
}

TEST_F(SessionRegistryTest, UnknownId_IsUnauthenticated) {
  EXPECT_EQ(registry_.Find(RandomId{}).status().code(), absl::StatusCode::kUnauthenticated);
}

TEST_F(SessionRegistryTest, OfAnotherTenantThanItsOwner_OnlyReads) {
  const auto of_team = std::make_shared<SlabSpace>();
  of_team->tenant = "team";
  EXPECT_FALSE((*registry_.Open(of_team, "team"))->read_only());
  EXPECT_TRUE((*registry_.Open(of_team, "node-b"))->read_only());
}

TEST_F(SessionRegistryTest, Expire_GoesThroughAllSessions) {
  const auto session = *registry_.Open(space_, "team");
  ASSERT_TRUE(session->leases.Add({}).ok());
  EXPECT_EQ(registry_.ExpireLeases(), 0u);
  EXPECT_EQ(registry_.All().size(), 1u);
}

}  // namespace
}  // namespace fq
