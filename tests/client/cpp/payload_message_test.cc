#include "client/cpp/payload_message.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "absl/strings/string_view.h"
#include "flashquant/v1/kv_cache.pb.h"

namespace fq::client {
namespace {

namespace wire = ::flashquant::v1;
using Places = std::vector<absl::Span<std::byte>>;

std::string Text(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string text;
  for (const grpc::Slice& s : slices)
    text.append(reinterpret_cast<const char*>(s.begin()), s.size());
  return text;
}

// In pieces of `piece` bytes, as a network would bring it.
grpc::ByteBuffer Buffer(const std::string& text, size_t piece) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < text.size(); at += piece) slices.emplace_back(text.substr(at, piece));
  return grpc::ByteBuffer(slices.data(), slices.size());
}

TEST(PayloadMessage, Serialized_IsPlainProtobuf) {
  wire::StoreRequest request;
  request.set_keys("0123");
  std::vector<std::byte> payload(300000);
  for (size_t i = 0; i < payload.size(); ++i) payload[i] = static_cast<std::byte>(i * 7);
  wire::StoreRequest parsed;
  ASSERT_TRUE(parsed.ParseFromString(Text(SerializeWithPayload(request, payload))));
  EXPECT_EQ(parsed.keys(), "0123");
  ASSERT_EQ(parsed.payload().size(), payload.size());
  EXPECT_EQ(std::memcmp(parsed.payload().data(), payload.data(), payload.size()), 0);
}

TEST(PayloadMessage, Parsed_GoesWhereThePlanSays) {
  wire::LoadResponse response;
  response.add_statuses(wire::BLOCK_STATUS_OK);
  response.add_sizes(6);
  response.set_payload("abcdef");
  for (size_t piece : {1u, 3u, 1000u}) {
    grpc::ByteBuffer buffer = Buffer(response.SerializeAsString(), piece);
    wire::LoadResponse header;
    std::vector<std::byte> first(2), second(4);
    const absl::Status status =
        ParseWithPayload(buffer, header, [&](uint64_t bytes) -> absl::StatusOr<Places> {
          EXPECT_EQ(bytes, 6u);
          EXPECT_EQ(header.sizes(0), 6u);
          return Places{absl::MakeSpan(first), absl::MakeSpan(second)};
        });
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(first[1], std::byte{'b'});
    EXPECT_EQ(second[3], std::byte{'f'});
  }
}

TEST(PayloadMessage, NoPayload_PlansForNothing) {
  wire::LoadResponse response;
  response.add_statuses(wire::BLOCK_STATUS_MISS);
  grpc::ByteBuffer buffer = Buffer(response.SerializeAsString(), 100);
  wire::LoadResponse header;
  ASSERT_TRUE(ParseWithPayload(buffer, header, [](uint64_t bytes) -> absl::StatusOr<Places> {
                EXPECT_EQ(bytes, 0u);
                return Places{};
              }).ok());
  EXPECT_EQ(header.statuses_size(), 1);
}

TEST(PayloadMessage, CutShort_IsDataLoss) {
  wire::LoadResponse response;
  response.add_statuses(wire::BLOCK_STATUS_OK);
  response.set_payload(std::string(100, 'x'));
  const std::string whole = response.SerializeAsString();
  std::vector<std::byte> place(100);
  for (size_t bytes = 1; bytes < whole.size(); bytes += 5) {
    grpc::ByteBuffer buffer = Buffer(whole.substr(0, bytes), 16);
    wire::LoadResponse header;
    const absl::Status status =
        ParseWithPayload(buffer, header, [&](uint64_t payload_bytes) -> absl::StatusOr<Places> {
          return Places{absl::MakeSpan(place).subspan(0, payload_bytes)};
        });
    // A message that ends between two fields is a message; all others are none.
    EXPECT_TRUE(status.ok() || absl::IsDataLoss(status)) << bytes << " " << status;
    EXPECT_TRUE(!status.ok() || bytes <= 5) << bytes;
  }
}

TEST(PayloadMessage, Noise_IsDataLoss) {
  grpc::ByteBuffer buffer = Buffer(std::string(50, '\xff'), 16);
  wire::LookupResponse response;
  EXPECT_TRUE(absl::IsDataLoss(Parse(buffer, response)));
}

}  // namespace
}  // namespace fq::client
