#include "server/server.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <thread>

#include "absl/strings/str_cat.h"
#include "server/segment_path.h"
#include "tests/testing/running_node.h"

namespace fq {
namespace {

namespace wire = ::flashquant::v1;

TEST(Server, SocketMode_HoldsForBothSockets) {
  RunningNode node([](Options& o) { o.socket_mode = "0660"; });
  for (const std::string& path :
       {node.options().socket, SegmentSocketPath(node.options().socket)}) {
    struct stat info {};
    ASSERT_EQ(stat(path.c_str(), &info), 0) << path;
    EXPECT_EQ(info.st_mode & 0777, 0660u) << path;
  }
}

TEST(Server, Stopped_RemovesItsSockets) {
  RunningNode node;
  const std::string path = node.options().socket;
  node.Stop();
  struct stat info {};
  EXPECT_NE(stat(path.c_str(), &info), 0);
  EXPECT_NE(stat(SegmentSocketPath(path).c_str(), &info), 0);
}

TEST(Server, SecondOnTheSocket_IsRefusedAndTheFirstGoesOn) {
  RunningNode node;
  NodeParts parts;
  parts.log = &node.node().log();
  const absl::Status second = Server::Start(node.options(), std::move(parts)).status();
  EXPECT_EQ(second.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_NE(second.message().find("--socket = " + node.options().socket + ": "),
            absl::string_view::npos)
      << second;
  EXPECT_TRUE(TestClient(node).opened().ok());
}

TEST(Server, TwoNodes_LiveInOneProcess) {
  RunningNode one, two;
  TestClient a(one), b(two);
  const std::string keys = TestKeys("a", 1);
  a.StoreAndLookup(keys, TestPages(one.codec_set(), 1, 1), wire::PROFILE_EXACT);
  wire::LookupResponse found;
  EXPECT_TRUE(b.Lookup(b.LookupOf(keys), found).ok());
  EXPECT_EQ(found.matched_blocks(), 0u);
}

TEST(Server, Drain_RefusesNewWorkServesLoadsAndEnds) {
  RunningNode node;
  TestClient client(node);
  const std::string keys = TestKeys("a", 1), pages = TestPages(node.codec_set(), 1, 1);
  const auto found = client.StoreAndLookup(keys, pages, wire::PROFILE_EXACT);
  node.server().BeginDrain();
  wire::StoreResponse stored;
  const grpc::Status store = client.Store(client.StoreOf(keys, pages, wire::PROFILE_EXACT), stored);
  EXPECT_EQ(store.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(TestClient(node).opened().error_code(), grpc::StatusCode::UNAVAILABLE);
  wire::LoadResponse loaded;
  EXPECT_TRUE(client.Load(client.LoadOf(found.lease_id(), 1), loaded).ok());
  EXPECT_EQ(loaded.payload(), pages);
  EXPECT_TRUE(node.server().FinishDrain());
  EXPECT_EQ(node.node().sessions().size(), 0u);
}

TEST(Server, MetricsListener_HasAPortWhenAsked) {
  RunningNode node([](Options& o) { o.metrics_listen = "127.0.0.1:0"; });
  EXPECT_GT(node.server().metrics_port(), 0);
}

}  // namespace
}  // namespace fq
