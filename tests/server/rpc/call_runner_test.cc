#include "server/rpc/call_runner.h"

#include <gtest/gtest.h>

#include <thread>

#include "server/rpc/status.h"
#include "server/rpc/wire.h"
#include "tests/testing/busy_workers.h"
#include "tests/testing/running_node.h"

namespace fq {
namespace {

wire::StoreRequest OneBlock(const RunningNode& node, const TestClient& client) {
  return client.StoreOf(TestKeys("a", 1), TestPages(node.codec_set(), 1, 1), wire::PROFILE_EXACT);
}

TEST(CallRunner, QueueFull_IsResourceExhaustedWithRetryAfter) {
  RunningNode node([](Options& o) { o.queue_depth = 1; });
  TestClient client(node);
  const BusyWorkers busy(node.node().workers());
  ASSERT_TRUE(node.node().workers().Submit([] {}).ok());
  grpc::ClientContext context;
  wire::StoreResponse reply;
  const grpc::Status status = client.stub().Store(&context, OneBlock(node, client), &reply);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_NE(status.error_message().find("queue-depth: 1"), std::string::npos);
  EXPECT_EQ(context.GetServerTrailingMetadata().count(kRetryAfterMetadata), 1u);
}

TEST(CallRunner, DeadlinePassedInTheQueue_DoesNoWork) {
  RunningNode node;
  TestClient client(node);
  {
    const BusyWorkers busy(node.node().workers());
    EXPECT_TRUE(Eventually([&] {  // a slow machine gives a call up before it has arrived
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
      wire::StoreResponse reply;
      EXPECT_EQ(client.stub().Store(&context, OneBlock(node, client), &reply).error_code(),
                grpc::StatusCode::DEADLINE_EXCEEDED);
      return node.node().workers().queued() > 0;
    }));
    wire::LookupResponse behind_them;
    EXPECT_TRUE(client.Lookup(client.LookupOf(TestKeys("a", 1)), behind_them).ok());
    // The node's clock for a call began when it arrived, a little later than ours.
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  }
  EXPECT_TRUE(node.node().WaitIdle(kPatience));
  EXPECT_EQ(node.node().tiers().Stats().host.slabs, 0u);
}

TEST(CallRunner, NoDeadline_GetsTheDefault) {
  RunningNode node([](Options& o) { o.default_deadline_ms = 50; });
  TestClient client(node);
  BusyWorkers busy(node.node().workers());
  std::thread releaser([&] {
    EXPECT_TRUE(Eventually([&] { return node.node().workers().queued() == 1; }));
    std::this_thread::sleep_for(std::chrono::milliseconds(60));  // real time: gRPC's own deadlines
    busy.Release();
  });
  wire::StoreResponse reply;
  EXPECT_EQ(client.Store(OneBlock(node, client), reply).error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  releaser.join();
}

TEST(CallRunner, EveryAnswer_IsCountedByMethodAndCode) {
  RunningNode node;
  TestClient client(node);
  wire::StoreResponse reply;
  EXPECT_TRUE(client.Store(OneBlock(node, client), reply).ok());
  EXPECT_FALSE(client.Store(wire::StoreRequest(), reply).ok());
  auto values = node.node().metrics().Values();
  EXPECT_EQ(values["fq_requests_total{code=\"OK\",method=\"Store\"}"], 1);
  EXPECT_EQ(values["fq_requests_total{code=\"INVALID_ARGUMENT\",method=\"Store\"}"], 1);
  EXPECT_EQ(values["fq_request_duration_seconds_count{method=\"Store\"}"], 2);
  EXPECT_EQ(values["fq_running_calls"], 0);
}

}  // namespace
}  // namespace fq
