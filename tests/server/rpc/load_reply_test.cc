#include "server/rpc/load_reply.h"

#include <grpcpp/support/slice.h>
#include <gtest/gtest.h>

namespace fq {
namespace {

std::string BytesOf(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) bytes.append(slice.begin(), slice.end());
  return bytes;
}

TEST(LoadReply, Joined_IsWhatProtobufWrites) {
  for (size_t size : {0, 1, 15, 16, 127, 128, 16384, 3 << 20}) {
    wire::LoadResponse reply;
    reply.add_statuses(wire::BLOCK_STATUS_OK);
    reply.add_sizes(size);
    reply.set_xxh3_128("digest");
    const std::string payload(size, 'p');
    const std::string joined = BytesOf(JoinLoadReply(reply, payload));
    reply.set_payload(payload);
    EXPECT_EQ(joined, reply.SerializeAsString()) << size;
  }
}

TEST(LoadReply, EmptyReply_IsEmpty) { EXPECT_EQ(BytesOf(JoinLoadReply({}, "")), ""); }

TEST(LoadReply, Request_IsParsedOrRefused) {
  wire::LoadRequest request;
  request.set_block_count(7);
  const std::string text = request.SerializeAsString();
  const grpc::Slice good(text), bad(std::string("\xff\xff\xff\xff"));
  EXPECT_EQ(ParseLoadRequest(grpc::ByteBuffer(&good, 1))->block_count(), 7u);
  const auto refused = ParseLoadRequest(grpc::ByteBuffer(&bad, 1));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(refused.status().message().find("4 bytes"), absl::string_view::npos);
}

}  // namespace
}  // namespace fq
