#include "server/rpc/grpc_server.h"

#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "server/segments.h"
#include "tests/testing/random.h"
#include "tests/testing/running_node.h"

namespace fq {
namespace {

namespace wire = ::flashquant::v1;

// Sends what grpc.health.v1 and reflection take, without their generated code.
grpc::Status CallRaw(RunningNode& node, const std::string& method, std::string* reply) {
  grpc::GenericStub stub(node.Connect());
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const grpc::Slice nothing;
  const grpc::ByteBuffer request(&nothing, 1);
  auto call = stub.PrepareUnaryCall(&context, method, request, &queue);
  call->StartCall();
  grpc::ByteBuffer answer;
  grpc::Status status;
  call->Finish(&answer, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  std::vector<grpc::Slice> slices;
  if (status.ok() && answer.Dump(&slices).ok()) {
    for (const grpc::Slice& slice : slices) reply->append(slice.begin(), slice.end());
  }
  return status;
}

TEST(GrpcServer, Health_ServesUntilTheDrain) {
  RunningNode node;
  std::string reply;
  ASSERT_TRUE(CallRaw(node, "/grpc.health.v1.Health/Check", &reply).ok());
  EXPECT_EQ(reply, std::string("\x08\x01", 2));  // status: SERVING
  node.server().BeginDrain();
  reply.clear();
  ASSERT_TRUE(CallRaw(node, "/grpc.health.v1.Health/Check", &reply).ok());
  EXPECT_EQ(reply, std::string("\x08\x02", 2));  // NOT_SERVING
}

TEST(GrpcServer, UnknownMethod_IsUnimplemented) {
  RunningNode node;
  std::string reply;
  EXPECT_EQ(CallRaw(node, "/flashquant.v1.KvCache/Nothing", &reply).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

TEST(GrpcServer, Reflection_IsThere) {
  RunningNode node;
  std::string reply;
  EXPECT_NE(CallRaw(node, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &reply)
                .error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

TEST(GrpcServer, MessageTooLong_IsRefusedAndTheNodeLives) {
  RunningNode node([](Options& o) { o.max_inline_bytes = 4096; });
  TestClient client(node);
  wire::StoreRequest request;
  request.set_payload(std::string(8 << 20, 'x'));
  wire::StoreResponse reply;
  EXPECT_EQ(client.Store(request, reply).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(TestClient(node).opened().ok());
}

TEST(GrpcServer, RandomBytesAtTheSocket_ChangeNothing) {
  RunningNode node;
  Random random(7);
  for (int round = 0; round < 20; ++round) {
    const OwnedFd peer(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un at{};
    at.sun_family = AF_UNIX;
    std::memcpy(at.sun_path, node.options().socket.data(), node.options().socket.size());
    ASSERT_EQ(connect(peer.get(), reinterpret_cast<sockaddr*>(&at), sizeof(at)), 0);
    std::string bytes = round % 2 == 0 ? "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" : "";
    for (int i = 0; i < 50'000; ++i) bytes.push_back(static_cast<char>(random.Below(256)));
    EXPECT_NE(send(peer.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), 0);
  }
  EXPECT_TRUE(TestClient(node).opened().ok());
  EXPECT_EQ(node.node().tiers().Stats().host.slabs, 0u);
}

TEST(GrpcServer, LoopbackTcp_ServesRemoteSessionsWithoutSegments) {
  RunningNode node([](Options& o) { o.listen = "127.0.0.1:0"; });
  auto stub = wire::KvCache::NewStub(grpc::CreateChannel(
      absl::StrCat("127.0.0.1:", node.server().tcp_port()), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  auto stream = stub->Session(&context);
  stream->Write(TestSessionRequest(node));
  wire::SessionResponse session;
  ASSERT_TRUE(stream->Read(&session));
  EXPECT_EQ(session.tenant(), "default");
  EXPECT_EQ(session.segment_socket(), "");
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
}

TEST(GrpcServer, PortTaken_IsUnavailable) {
  RunningNode first([](Options& o) { o.listen = "127.0.0.1:0"; });
  const TempFolder folder;
  Options options = TestOptions(folder);
  options.listen = absl::StrCat("127.0.0.1:", first.server().tcp_port());
  NodeParts parts;
  parts.log = &first.node().log();
  const auto second = Server::Start(options, std::move(parts));
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(second.status().message().find(options.listen), absl::string_view::npos);
}

TEST(GrpcServer, UnreadableCertificate_IsRefusedWithOptionAndPath) {
  RunningNode other;
  const TempFolder folder;
  Options options = TestOptions(folder);
  options.listen = "127.0.0.1:0";
  options.tls_cert = options.tls_key = "/nowhere.pem";
  NodeParts parts;
  parts.log = &other.node().log();
  const auto server = Server::Start(options, std::move(parts));
  EXPECT_EQ(server.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(server.status().message().find("--tls-cert = /nowhere.pem"), absl::string_view::npos);
}

}  // namespace
}  // namespace fq
