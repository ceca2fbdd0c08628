#include "server/rpc/call_packet.h"

#include <gtest/gtest.h>

#include <cstring>

#include "server/retry_after.h"

namespace fq {
namespace {

std::string Packet(uint32_t kind, uint32_t zero, uint64_t timeout_us, const std::string& message) {
  std::string packet(16, '\0');
  std::memcpy(packet.data(), &kind, 4);
  std::memcpy(packet.data() + 4, &zero, 4);
  std::memcpy(packet.data() + 8, &timeout_us, 8);
  return packet + message;
}

TEST(CallPacket, Request_IsTakenApart) {
  const std::string packet = Packet(3, 0, 1500, "message");
  const auto call = ParseCallPacket(packet, packet.size());
  ASSERT_TRUE(call.ok()) << call.status();
  EXPECT_EQ(call->kind, CallKind::kLoad);
  EXPECT_EQ(call->timeout, std::chrono::microseconds(1500));
  EXPECT_EQ(call->message, "message");
}

TEST(CallPacket, NoTimeoutAndTheLongest) {
  std::string packet = Packet(1, 0, 0, "");
  EXPECT_FALSE(ParseCallPacket(packet, packet.size())->timeout.has_value());
  packet = Packet(1, 0, UINT64_MAX, "");
  EXPECT_EQ(ParseCallPacket(packet, packet.size())->timeout, std::chrono::hours(24));
}

TEST(CallPacket, BadRequests_AreRefusedWithFieldAndValue) {
  const auto refused = [](const std::string& packet, size_t whole, const std::string& part) {
    const auto call = ParseCallPacket(packet, whole);
    EXPECT_EQ(call.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(call.status().message().find(part), absl::string_view::npos) << call.status();
  };
  const std::string good = Packet(1, 0, 1, "");
  refused(good.substr(0, 15), 15, "packet of 15 bytes: must have 16..131072");
  refused(good, kMaxCallPacketBytes + 1, "packet of 131073 bytes");
  refused(Packet(0, 0, 1, ""), 16, "method = 0");
  refused(Packet(5, 0, 1, ""), 16, "method = 5");
  refused(Packet(1, 7, 1, ""), 16, "reserved = 7");
}

TEST(CallPacket, LargestRequest_IsTaken) {
  const std::string packet = Packet(2, 0, 1, std::string(kMaxCallPacketBytes - 16, 'x'));
  EXPECT_EQ(ParseCallPacket(packet, packet.size())->message.size(), kMaxCallPacketBytes - 16);
}

TEST(CallPacket, Replies_CarryMessageOrErrorAndWhenToComeAgain) {
  EXPECT_EQ(ReplyPacket(absl::OkStatus(), "reply"), std::string(8, '\0') + "reply");
  const std::string full =
      ReplyPacket(WithRetryAfter(absl::ResourceExhaustedError("full"), 20), "not sent");
  EXPECT_EQ(full, std::string("\x08\0\0\0\x14\0\0\0", 8) + "full");
}

TEST(CallPacket, Greeting_SaysVersionAndLimit) {
  EXPECT_EQ(GreetingPacket(), std::string("\x01\0\0\0\0\0\x02\0", 8));
}

}  // namespace
}  // namespace fq
