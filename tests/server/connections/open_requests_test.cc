#include "server/connections/open_requests.h"

#include <gtest/gtest.h>

#include <string>

namespace fq {
namespace {

constexpr uint8_t kData = FrameHeader::kData, kHeaders = FrameHeader::kHeaders,
                  kReset = FrameHeader::kResetStream, kEnd = FrameHeader::kEndStream;

FrameHeader Frame(uint8_t type, uint32_t stream, uint32_t length, uint8_t flags = 0) {
  return {length, type, flags, stream};
}

std::string Bytes(uint8_t type, uint8_t flags, uint8_t stream, uint8_t length) {
  const char header[] = {
      0, 0, static_cast<char>(length), static_cast<char>(type), static_cast<char>(flags), 0,
      0, 0, static_cast<char>(stream)};
  return std::string(header, sizeof(header)) + std::string(length, 'x');
}

void Answer(OpenRequests& requests, const std::string& bytes) {
  requests.OnNodeBytes({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
}

TEST(OpenRequests, WhatIsAnsweredOrReset_IsNotHeld) {
  RequestRoom room(1000);
  OpenRequests requests(&room);
  for (uint32_t stream : {1, 3, 5, 7}) {
    ASSERT_TRUE(requests.OnPeerFrame(Frame(kHeaders, stream, 50)).ok());
    ASSERT_TRUE(requests.OnPeerFrame(Frame(kData, stream, 100)).ok());
  }
  ASSERT_TRUE(requests.OnPeerFrame(Frame(kData, 7, 11, kEnd)).ok());
  EXPECT_EQ(requests.held(), 411u);  // whole, but not answered
  Answer(requests, Bytes(kHeaders, 4, 1, 9) + Bytes(kData, 0, 1, 200));
  EXPECT_EQ(requests.held(), 411u);
  Answer(requests, Bytes(kHeaders, 4 | kEnd, 1, 9));
  EXPECT_EQ(requests.held(), 311u);
  Answer(requests, Bytes(kReset, 0, 3, 4));
  ASSERT_TRUE(requests.OnPeerFrame(Frame(kReset, 5, 4)).ok());
  EXPECT_EQ(requests.held(), 111u);
  EXPECT_EQ(room.held(), 111u);
}

TEST(OpenRequests, NodesFramesInAnyParts_AreUnderstood) {
  const std::string answers = Bytes(4, 0, 0, 30) + Bytes(kHeaders, 4, 1, 9) +
                              Bytes(kData, 0, 1, 77) + Bytes(kHeaders, 4 | kEnd, 1, 3) +
                              Bytes(6, 1, 0, 8) + Bytes(kHeaders, 4 | kEnd, 3, 0);
  for (size_t cut = 1; cut < 30; ++cut) {
    RequestRoom room(1000);
    OpenRequests requests(&room);
    for (uint32_t stream : {1, 3, 5}) {
      EXPECT_TRUE(requests.OnPeerFrame(Frame(kHeaders, stream, 50)).ok());
      EXPECT_TRUE(requests.OnPeerFrame(Frame(kData, stream, 10 * stream)).ok());
    }
    for (size_t at = 0; at < answers.size(); at += cut) Answer(requests, answers.substr(at, cut));
    EXPECT_EQ(requests.held(), 50u) << cut;
  }
}

TEST(OpenRequests, DataOfAStreamThatIsAnswered_IsNotCounted) {
  RequestRoom room(1000);
  OpenRequests requests(&room);
  ASSERT_TRUE(requests.OnPeerFrame(Frame(kHeaders, 1, 50)).ok());
  Answer(requests, Bytes(kHeaders, 4 | kEnd, 1, 9));
  ASSERT_TRUE(requests.OnPeerFrame(Frame(kData, 1, 5000)).ok());
  EXPECT_EQ(requests.held(), 0u);
}

TEST(OpenRequests, RoomUsedUp_TheConnectionWithMoreThanItsShareIsRefused) {
  RequestRoom room(1000);
  {
    OpenRequests large(&room), small(&room);
    ASSERT_TRUE(large.OnPeerFrame(Frame(kHeaders, 1, 50)).ok());
    ASSERT_TRUE(small.OnPeerFrame(Frame(kHeaders, 1, 50)).ok());
    ASSERT_TRUE(large.OnPeerFrame(Frame(kData, 1, 900)).ok());
    ASSERT_TRUE(small.OnPeerFrame(Frame(kData, 1, 100)).ok());
    EXPECT_TRUE(small.OnPeerFrame(Frame(kData, 1, 400)).ok());  // its share, though nothing is left
    const absl::Status status = large.OnPeerFrame(Frame(kData, 1, 1));
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(status.message(),
              "requests that are not answered have 1401 bytes, 901 of them from this connection, "
              "one of 2: max-message-bytes is 1000");
    EXPECT_FALSE(small.OnPeerFrame(Frame(kData, 1, 1)).ok());
  }
  EXPECT_EQ(room.held(), 0u);  // a connection that ends gives all back
}

}  // namespace
}  // namespace fq
