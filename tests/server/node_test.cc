#include "server/node.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/testing/running_node.h"

namespace fq {
namespace {

TEST(Node, BadCodecSet_IsRefusedWithOptionAndPath) {
  const TempFolder folder;
  Options options = TestOptions(folder);
  options.codec_sets = {"/nowhere.fqcs"};
  const auto node = Node::Create(options, {});
  EXPECT_EQ(node.status().code(), absl::StatusCode::kInvalidArgument);
  for (const char* part : {"--codec-set = /nowhere.fqcs", "No such file"}) {
    EXPECT_NE(node.status().message().find(part), absl::string_view::npos) << node.status();
  }
}

TEST(Node, BadOption_IsRefused) {
  const TempFolder folder;
  Options options = TestOptions(folder);
  options.queue_depth = 0;
  EXPECT_EQ(Node::Create(options, {}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Node, WaitIdle_WaitsForRunningCalls) {
  const TempFolder folder;
  const auto node = *Node::Create(TestOptions(folder), {});
  node->BeginCall();
  EXPECT_EQ(node->Sample().running_calls, 1);
  EXPECT_FALSE(node->WaitIdle(Milliseconds(1)));
  std::thread other([&] { node->EndCall(); });
  EXPECT_TRUE(node->WaitIdle(kPatience));
  other.join();
}

TEST(Node, Draining_TakesNothingNew) {
  const TempFolder folder;
  const auto node = *Node::Create(TestOptions(folder), {});
  EXPECT_TRUE(node->CheckAccepting().ok());
  node->BeginDrain();
  EXPECT_EQ(node->CheckAccepting().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(node->Sample().draining, 1);
}

}  // namespace
}  // namespace fq
