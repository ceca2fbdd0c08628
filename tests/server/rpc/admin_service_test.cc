#include "server/rpc/admin_service.h"

#include <gtest/gtest.h>

#include "tests/testing/running_node.h"

namespace fq {
namespace {

class AdminServiceTest : public testing::Test {
 protected:
  AdminServiceTest() : client_(node_) {
    pages_ = TestPages(node_.codec_set(), 3, 1);
    keys_ = TestKeys("a", 3);
    lease_ = client_.StoreAndLookup(keys_, pages_, wire::PROFILE_COMPACT).lease_id();
  }

  void Release() {
    wire::ReleaseRequest request;
    request.set_session_id(client_.id());
    request.add_lease_ids(lease_);
    grpc::ClientContext context;
    wire::ReleaseResponse reply;
    EXPECT_TRUE(client_.stub().Release(&context, request, &reply).ok());
    EXPECT_EQ(reply.released(), 1u);
  }

  grpc::Status Purge(const std::string& name, wire::PurgeResponse& reply) {
    wire::PurgeRequest request;
    request.set_namespace_name(name);
    grpc::ClientContext context;
    return client_.admin().Purge(&context, request, &reply);
  }

  RunningNode node_;
  TestClient client_;
  std::string pages_, keys_, lease_;
};

TEST_F(AdminServiceTest, Status_ShowsTheNode) {
  grpc::ClientContext context;
  wire::StatusResponse status;
  ASSERT_TRUE(client_.admin().Status(&context, {}, &status).ok());
  EXPECT_EQ(status.version(), FQ_VERSION);
  EXPECT_NE(status.build().find("CUDA"), std::string::npos) << status.build();
  EXPECT_GE(status.uptime_seconds(), 0);
  EXPECT_EQ(status.state(), wire::StatusResponse::STATE_SERVING);
  EXPECT_EQ(status.host_capacity_bytes(), node_.options().host_bytes);
  EXPECT_GT(status.host_used_bytes(), 0u);
  EXPECT_EQ(status.blocks(), 3u);
  EXPECT_EQ(status.sessions(), 1u);
  EXPECT_EQ(status.leases(), 1u);
  EXPECT_EQ(status.counters().at("fq_store_blocks"), 3);
  EXPECT_EQ(status.counters().size(), node_.node().metrics().Values().size());
}

TEST_F(AdminServiceTest, Status_SaysDraining) {
  node_.node().BeginDrain();
  grpc::ClientContext context;
  wire::StatusResponse status;
  ASSERT_TRUE(client_.admin().Status(&context, {}, &status).ok());
  EXPECT_EQ(status.state(), wire::StatusResponse::STATE_DRAINING);
}

TEST_F(AdminServiceTest, Namespaces_ShowBlocksAndTheLossOfTheCodecSet) {
  grpc::ClientContext context;
  wire::NamespacesResponse reply;
  ASSERT_TRUE(client_.admin().Namespaces(&context, {}, &reply).ok());
  ASSERT_EQ(reply.namespaces_size(), 1);
  const wire::NamespaceInfo& info = reply.namespaces(0);
  EXPECT_EQ(info.name(), "tests/one");
  EXPECT_EQ(info.namespace_descriptor().model(), "synthetic");
  EXPECT_EQ(info.fingerprint(), client_.session().namespace_fingerprint());
  EXPECT_EQ(info.blocks(), 3u);
  EXPECT_EQ(info.raw_bytes(), pages_.size());
  EXPECT_LT(info.stored_bytes(), info.raw_bytes());
  EXPECT_EQ(info.compact().bits_per_value(), node_.codec_set().compact_loss().bits_per_value);
  EXPECT_EQ(info.compact().text(), "synthetic");
  EXPECT_EQ(info.near_lossless().tokens(), 4096u);
  EXPECT_EQ(info.calibrated_tokens(), 2048u);
  EXPECT_FALSE(info.has_expected_error());
  ASSERT_EQ(info.quality_size(), 2);
  EXPECT_EQ(info.quality(0).profile(), "near-lossless");
  EXPECT_EQ(info.quality(1).profile(), "compact");
  EXPECT_EQ(info.quality(1).samples(), 0u);
  EXPECT_EQ(info.blocks_by_profile().at("compact"), 1u);
  EXPECT_EQ(info.blocks_by_profile().at("near-lossless"), 2u);
}

TEST_F(AdminServiceTest, UnknownOrBadName_IsSaid) {
  wire::NamespacesRequest request;
  request.set_name("none");
  wire::NamespacesResponse reply;
  grpc::ClientContext context;
  EXPECT_EQ(client_.admin().Namespaces(&context, request, &reply).error_code(),
            grpc::StatusCode::NOT_FOUND);
  wire::PurgeResponse purged;
  EXPECT_EQ(Purge("none", purged).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Purge("", purged).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Purge("a b", purged).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(node_.node().tiers().Stats().host.slabs, 3u);
}

TEST_F(AdminServiceTest, Verify_CountsAndDropsWhatIsDamaged) {
  const auto session = node_.node().sessions().All().at(0);
  {
    const Pin pin = node_.node().tiers().Find(session->leases.Snapshot().at(0)->pins[1].key());
    const_cast<std::byte&>(pin.primary()[pin.primary().size() - 1]) ^= std::byte{1};
  }
  grpc::ClientContext context;
  wire::VerifyResponse reply;
  ASSERT_TRUE(client_.admin().Verify(&context, {}, &reply).ok());
  EXPECT_EQ(reply.blocks(), 3u);
  EXPECT_GT(reply.bytes(), 0u);
  EXPECT_EQ(reply.failed(), 1u);
  wire::LookupResponse found;
  EXPECT_TRUE(client_.Lookup(client_.LookupOf(keys_), found).ok());
  EXPECT_EQ(found.matched_blocks(), 1u);
}

TEST_F(AdminServiceTest, Purge_SparesLeasedBlocks) {
  wire::PurgeResponse reply;
  ASSERT_TRUE(Purge("tests/one", reply).ok());
  EXPECT_EQ(reply.blocks(), 0u);
  EXPECT_EQ(node_.node().tiers().Stats().host.slabs, 3u);
  Release();
  ASSERT_TRUE(Purge("tests/one", reply).ok());
  EXPECT_EQ(reply.blocks(), 3u);
  EXPECT_GT(reply.bytes(), 0u);
  EXPECT_EQ(node_.node().tiers().Stats().host.slabs, 0u);
}

}  // namespace
}  // namespace fq
