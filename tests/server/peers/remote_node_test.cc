#include "server/peers/remote_node.h"

#include <gtest/gtest.h>

#include "tests/testing/running_node.h"

namespace fq {
namespace {

namespace wire = ::flashquant::v1;

RemoteLimits Soon() { return {std::chrono::system_clock::now() + kPatience}; }

TEST(RemoteNodes, OnlyTheTextsThatWereGiven_AreFound) {
  const RemoteNodes nodes({"unix:///run/b.sock", "node-b:7600"}, {}, 1 << 20);
  EXPECT_NE(nodes.Find("unix:///run/b.sock"), nullptr);
  EXPECT_NE(nodes.Find("node-b:7600"), nullptr);
  for (const char* other : {"", "node-b", "unix:///run/b.sock/", "unix:/run/b.sock"}) {
    EXPECT_EQ(nodes.Find(other), nullptr) << other;
  }
}

TEST(RemoteSession, ReadsExtentsAndLeavesNothingBehind) {
  RunningNode node;
  const std::string keys = TestKeys("a", 3);
  TestClient(node).StoreAndLookup(keys, TestPages(node.codec_set(), 3, 1),
                                  wire::PROFILE_NEAR_LOSSLESS);
  const std::string address = "unix://" + node.options().socket;
  const RemoteNodes nodes({address}, {}, 1 << 20);
  {
    auto session = RemoteSession::Open(nodes.Find(address), TestSessionRequest(node), Soon());
    ASSERT_TRUE(session.ok()) << session.status();
    const auto found = (*session)->Lookup(keys, wire::PROFILE_COMPACT);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(found->matched_blocks(), 3u);
    const auto loaded = (*session)->Load(found->lease_id(), 1, 2, wire::PROFILE_COMPACT);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    ASSERT_EQ(loaded->blocks.size(), 2u);
    for (const RemoteBlocks::Block& block : loaded->blocks) {
      EXPECT_EQ(block.status, wire::BLOCK_STATUS_OK);
      EXPECT_FALSE(block.damaged);
      EXPECT_FALSE(block.primary.empty());
      EXPECT_FALSE(block.refinement.empty());
    }
  }
  EXPECT_TRUE(Eventually([&] { return node.node().sessions().size() == 0; }));
  EXPECT_TRUE(Eventually([&] { return node.node().tiers().Stats().host.pinned_slabs == 0; }));
}

TEST(RemoteSession, NobodyThere_IsUnavailable) {
  const TempFolder folder;
  const std::string address = "unix://" + folder.path() + "/none";
  const RemoteNodes nodes({address}, {}, 1 << 20);
  wire::SessionRequest request;
  EXPECT_EQ(RemoteSession::Open(nodes.Find(address), request, Soon()).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST(RemoteSession, RefusedByTheNode_SaysWhy) {
  RunningNode node;
  const std::string address = "unix://" + node.options().socket;
  const RemoteNodes nodes({address}, {}, 1 << 20);
  wire::SessionRequest request = TestSessionRequest(node);
  request.set_tenant("other");
  const auto session = RemoteSession::Open(nodes.Find(address), request, Soon());
  EXPECT_EQ(session.status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_NE(session.status().message().find("trusted-node"), absl::string_view::npos);
}

TEST(TakeApart, BlocksThatWereNotDelivered_HaveNoExtents) {
  auto reply = std::make_unique<wire::LoadResponse>();
  for (wire::BlockStatus status : {wire::BLOCK_STATUS_MISS, wire::BLOCK_STATUS_BELOW_FLOOR}) {
    reply->add_statuses(status);
    reply->add_sizes(0);
    reply->add_refinement_sizes(0);
  }
  const auto blocks = TakeApart(std::move(reply), 2);
  ASSERT_TRUE(blocks.ok()) << blocks.status();
  EXPECT_EQ(blocks->blocks[1].status, wire::BLOCK_STATUS_BELOW_FLOOR);
  EXPECT_TRUE(blocks->blocks[0].primary.empty());
}

}  // namespace
}  // namespace fq
