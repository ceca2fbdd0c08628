#include "server/rpc/session_stream.h"

#include <gtest/gtest.h>

#include "server/segment_path.h"
#include "tests/testing/running_node.h"

namespace fq {
namespace {

TEST(SessionStream, Opened_TellsWhatTheNodeGrants) {
  RunningNode node([](Options& o) {
    o.max_blocks_per_call = 9;
    o.max_inline_bytes = 1 << 20;
    o.lease_ms = 77;
    o.tenant = "team";
  });
  TestClient client(node);
  const wire::SessionResponse& session = client.session();
  EXPECT_EQ(session.session_id().size(), 16u);
  EXPECT_EQ(session.namespace_fingerprint().size(), 32u);
  EXPECT_EQ(session.tenant(), "team");
  EXPECT_EQ(session.segment_socket(), SegmentSocketPath(node.options().socket));
  EXPECT_EQ(session.max_blocks_per_call(), 9u);
  EXPECT_EQ(session.max_inline_bytes(), 1u << 20);
  EXPECT_EQ(session.lease_ms(), 77u);
  EXPECT_EQ(session.profiles_size(), 4);
  EXPECT_EQ(session.calibrated_tokens(),
            static_cast<uint32_t>(node.codec_set().calibrated_tokens()));
}

TEST(SessionStream, AnotherTenantThanTheCallers_IsPermissionDenied) {
  RunningNode node([](Options& o) { o.tenant = "team"; });
  wire::SessionRequest request = TestSessionRequest(node);
  request.set_tenant("team");
  EXPECT_EQ(TestClient(node, request).opened().error_code(), grpc::StatusCode::NOT_FOUND);
  TestClient first(node);
  EXPECT_TRUE(TestClient(node, request).opened().ok());  // who names it must find it there
  request.set_tenant("other");
  EXPECT_EQ(TestClient(node, request).opened().error_code(), grpc::StatusCode::PERMISSION_DENIED);
  request.set_tenant(std::string(257, 't'));
  EXPECT_EQ(TestClient(node, request).opened().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST(SessionStream, NoCodecSet_ExactAndUniversalOnly) {
  RunningNode node;
  wire::SessionRequest request = TestSessionRequest(node);
  request.mutable_namespace_descriptor()->clear_codec_set_id();
  TestClient client(node, request);
  ASSERT_TRUE(client.opened().ok());
  ASSERT_EQ(client.session().profiles_size(), 2);
  EXPECT_EQ(client.session().profiles(0), wire::PROFILE_EXACT);
  EXPECT_EQ(client.session().profiles(1), wire::PROFILE_UNIVERSAL);
}

TEST(SessionStream, BadFirstMessage_IsRefusedAndNothingIsOpen) {
  RunningNode node;
  wire::SessionRequest request = TestSessionRequest(node);
  request.mutable_namespace_descriptor()->set_head_size(80);
  TestClient client(node, request);
  EXPECT_EQ(client.opened().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_NE(client.opened().error_message().find("head_size = 80"), std::string::npos);
  EXPECT_EQ(node.node().sessions().size(), 0u);
}

TEST(SessionStream, OtherDescriptor_IsFailedPreconditionWithBothValues) {
  RunningNode node;
  TestClient first(node);
  wire::SessionRequest request = TestSessionRequest(node);
  request.mutable_namespace_descriptor()->set_rope("other");
  TestClient second(node, request);
  EXPECT_EQ(second.opened().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_NE(second.opened().error_message().find("rope = 'other'"), std::string::npos);
  EXPECT_NE(second.opened().error_message().find("with ''"), std::string::npos);
}

TEST(SessionStream, TooManySessions_IsResourceExhausted) {
  RunningNode node([](Options& o) { o.max_sessions = 1; });
  TestClient first(node);
  EXPECT_EQ(TestClient(node).opened().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST(SessionStream, LaterMessages_KeepTheSession) {
  RunningNode node;
  auto stub = wire::KvCache::NewStub(node.Connect());
  grpc::ClientContext context;
  auto stream = stub->Session(&context);
  stream->Write(TestSessionRequest(node));
  wire::SessionResponse session;
  ASSERT_TRUE(stream->Read(&session));
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(stream->Write(wire::SessionRequest()));
  EXPECT_EQ(node.node().sessions().size(), 1u);
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_TRUE(Eventually([&] { return node.node().sessions().size() == 0; }));
}

TEST(SessionStream, EndedOrBroken_FreesLeasesAndIsGone) {
  RunningNode node;
  for (bool broken : {false, true}) {
    auto stub = wire::KvCache::NewStub(node.Connect());
    grpc::ClientContext context;
    auto stream = stub->Session(&context);
    stream->Write(TestSessionRequest(node));
    wire::SessionResponse session;
    ASSERT_TRUE(stream->Read(&session));
    TestClient other(node);
    const std::string keys = TestKeys(broken ? "a" : "b", 2);
    other.StoreAndLookup(keys, TestPages(node.codec_set(), 2, 1), wire::PROFILE_EXACT);
    wire::LookupRequest lookup = other.LookupOf(keys);
    lookup.set_session_id(session.session_id());
    wire::LookupResponse found;
    ASSERT_TRUE(other.Lookup(lookup, found).ok());
    other.End();
    EXPECT_TRUE(Eventually([&] { return node.node().tiers().Stats().host.pinned_slabs == 2; }));
    if (broken) {
      context.TryCancel();
    } else {
      stream->WritesDone();
    }
    stream->Finish();
    EXPECT_TRUE(Eventually([&] { return node.node().sessions().size() == 0; }));
    EXPECT_TRUE(Eventually([&] { return node.node().tiers().Stats().host.pinned_slabs == 0; }));
    EXPECT_EQ(other.Lookup(lookup, found).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  }
}

}  // namespace
}  // namespace fq
