#include "server/connections/peer_stream.h"

#include <gtest/gtest.h>

#include "tests/server/connections/tls_client.h"
#include "tests/testing/running_node.h"

namespace fq {
namespace {

absl::Span<const std::byte> Bytes(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

TEST(PeerStream, Plain_MovesBytesBlocksAndEnds) {
  auto [ours, theirs] = SocketPair();
  PeerStream stream(std::move(ours));
  std::byte room[16];
  EXPECT_EQ(stream.Read(absl::MakeSpan(room)), 0u);  // nothing yet
  SendAll(theirs, "hello");
  EXPECT_EQ(stream.Read(absl::MakeSpan(room)), 5u);
  EXPECT_EQ(stream.Write(Bytes("answer")), 6u);
  EXPECT_EQ(Receive(theirs, 6), "answer");
  const std::string much(8 << 20, 'x');
  EXPECT_LT(*stream.Write(Bytes(much)), much.size());
  EXPECT_EQ(stream.Write(Bytes(much)), 0u);  // full
  theirs = OwnedFd(-1);
  EXPECT_EQ(stream.Read(absl::MakeSpan(room)), std::nullopt);
  EXPECT_EQ(stream.Write(Bytes("x")), std::nullopt);
}

TEST(PeerStream, HangUp_EndsBothSides) {
  auto [ours, theirs] = SocketPair();
  PeerStream stream(std::move(ours));
  stream.HangUp();
  std::byte room[16];
  EXPECT_EQ(stream.Read(absl::MakeSpan(room)), std::nullopt);
  EXPECT_TRUE(HangsUp(theirs));
}

TEST(PeerStream, Tls_MovesBytesAndSaysGoodbye) {
  const TempFolder folder;
  const TestCertificate node = MakeCertificate(folder.path(), "node");
  TlsPair pair({node.cert, node.key, ""}, nullptr, "h2");
  ASSERT_TRUE(pair.ShakeHands());
  PeerStream& stream = pair.server();
  std::byte room[4];
  EXPECT_EQ(stream.Read(absl::MakeSpan(room)), 0u);
  EXPECT_EQ(SSL_write(pair.client(), "hello", 5), 5);
  EXPECT_EQ(stream.Read(absl::MakeSpan(room)), 4u);
  EXPECT_TRUE(stream.has_pending());  // no poll would tell
  EXPECT_EQ(stream.Read(absl::MakeSpan(room)), 1u);
  EXPECT_FALSE(stream.has_pending());
  EXPECT_EQ(stream.Write(Bytes("answer")), 6u);
  char answer[6];
  EXPECT_EQ(SSL_read(pair.client(), answer, 6), 6);
  stream.Close();
  const int end = SSL_read(pair.client(), answer, 6);
  EXPECT_EQ(SSL_get_error(pair.client(), end), SSL_ERROR_ZERO_RETURN);
}

TEST(PeerStream, HandshakeWithSomebodyWhoSpeaksNoTls_IsUnauthenticated) {
  const TempFolder folder;
  const TestCertificate node = MakeCertificate(folder.path(), "node");
  const auto context = TlsContext::Load({node.cert, node.key, ""});
  auto [ours, theirs] = SocketPair();
  PeerStream stream(std::move(ours));
  stream.UseTls(*(*context)->Accept(stream.fd()));
  EXPECT_FALSE(*stream.Handshake());
  SendAll(theirs, "PRI * HTTP/2.0\r\n\r\n");
  EXPECT_EQ(stream.Handshake().status().code(), absl::StatusCode::kUnauthenticated);
}

}  // namespace
}  // namespace fq
