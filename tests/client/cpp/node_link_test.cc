// Calls to nodes that are not there or do not answer.
#include "client/cpp/node_link.h"

#include <grpc/grpc.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "absl/time/clock.h"
#include "tests/testing/eventually.h"

namespace fq::client {
namespace {

constexpr char kMethod[] = "/flashquant.v1.Admin/Status";

// Accepts connections and says nothing: a node that hangs.
class SilentSocket {
 public:
  SilentSocket() {
    EXPECT_NE(mkdtemp(folder_.data()), nullptr);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path().c_str(), sizeof(address.sun_path) - 1);
    fd_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(fd_, 16), 0);
  }
  ~SilentSocket() {
    close(fd_);
    std::filesystem::remove_all(folder_);
  }
  std::string path() const { return folder_ + "/s"; }

 private:
  std::string folder_ = "/tmp/fql-XXXXXX";
  int fd_ = -1;
};

// A message without fields.
grpc::ByteBuffer Nothing() {
  const grpc::Slice slice("");
  return grpc::ByteBuffer(&slice, 1);
}

ClientOptions OptionsFor(const std::string& endpoint) {
  ClientOptions options;
  options.endpoint = endpoint;
  options.breaker = {3, absl::Hours(1)};
  return options;
}

TEST(NodeLink, NobodyThere_IsUnavailable) {
  const auto link = *NodeLink::Create(OptionsFor("unix:///nowhere/fq.sock"));
  const auto reply = link->Call(kMethod, Nothing(), absl::Now() + absl::FromChrono(kPatience));
  EXPECT_TRUE(absl::IsUnavailable(reply.status())) << reply.status();
}

TEST(NodeLink, SilentNode_EndsAtTheDeadline) {
  const SilentSocket node;
  const auto link = *NodeLink::Create(OptionsFor("unix://" + node.path()));
  const absl::Time begin = absl::Now();
  const auto reply = link->Call(kMethod, Nothing(), begin + absl::Milliseconds(100));
  EXPECT_TRUE(absl::IsDeadlineExceeded(reply.status())) << reply.status();
  EXPECT_GE(absl::Now() - begin, absl::Milliseconds(99));  // how exact it is: session_test.cc
}

// One that is slow to take a connection is waited for as long as calls may take.
TEST(NodeLink, SilentNode_IsNotGivenUpBeforeTheDeadline) {
  const SilentSocket node;
  ClientOptions options = OptionsFor("unix://" + node.path());
  options.deadline = absl::FromChrono(kPatience);
  const auto link = *NodeLink::Create(options);
  const auto reply = link->Call(kMethod, Nothing(), absl::Now() + absl::Milliseconds(2500));
  EXPECT_TRUE(absl::IsDeadlineExceeded(reply.status())) << reply.status();
}

TEST(NodeLink, FailuresInARow_OpenTheBreaker) {
  const SilentSocket node;
  const auto link = *NodeLink::Create(OptionsFor("unix://" + node.path()));
  for (int i = 0; i < 3; ++i) {
    EXPECT_FALSE(link->Call(kMethod, Nothing(), absl::Now() + absl::Milliseconds(20)).ok());
  }
  const auto reply = link->Call(kMethod, Nothing(), absl::Now() + absl::FromChrono(kPatience));
  EXPECT_TRUE(absl::IsUnavailable(reply.status()));
  EXPECT_NE(reply.status().message().find("circuit breaker"), std::string::npos);
}

TEST(NodeLink, OptionsThatMakeNoSense_AreRefused) {
  for (const char* endpoint : {"", "/run/s", "unix://run/s", "unix:s", "http://h:1", "h",
                               "h:", ":1", "h:0", "h:65536", "h:http"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(NodeLink::Create(OptionsFor(endpoint)).status()))
        << endpoint;
  }
  for (const char* endpoint : {"unix:///run/s", "h:1", "127.0.0.1:65535", "[::1]:7600"}) {
    EXPECT_TRUE(NodeLink::Create(OptionsFor(endpoint)).ok()) << endpoint;
  }
  ClientOptions options = OptionsFor("unix:///x");
  options.tls.ca = "pem";
  EXPECT_TRUE(absl::IsInvalidArgument(NodeLink::Create(options).status()));
  options = OptionsFor("host:1");
  options.tls.cert = "pem";
  EXPECT_TRUE(absl::IsInvalidArgument(NodeLink::Create(options).status()));
  options = OptionsFor("host:1");
  options.max_message_bytes = uint64_t{1} << 31;
  EXPECT_TRUE(absl::IsInvalidArgument(NodeLink::Create(options).status()));
}

// gRPC's own shutdown may wait 10 s for one of its threads; whoever ends the last link would.
TEST(NodeLink, LastOneEnds_GrpcStays) {
  NodeLink::Create(OptionsFor("unix:///nowhere/fq.sock")).value().reset();
  EXPECT_NE(grpc_is_initialized(), 0);
}

TEST(NodeLink, NoAnswer_OnlyWhenTheNodeWasNotHeard) {
  EXPECT_TRUE(NoAnswer(absl::UnavailableError("")));
  EXPECT_TRUE(NoAnswer(absl::DeadlineExceededError("")));
  EXPECT_FALSE(NoAnswer(absl::NotFoundError("")));
  EXPECT_FALSE(NoAnswer(absl::ResourceExhaustedError("")));
  EXPECT_FALSE(NoAnswer(absl::OkStatus()));
}

}  // namespace
}  // namespace fq::client
