#include "client/cpp/payload_message.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace fq::client {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;
using google::protobuf::io::StringOutputStream;

constexpr uint32_t kPayloadTag = (15 << 3) | 2;  // length-delimited
constexpr size_t kTagAndLengthBytesMax = 11;

absl::Status Malformed(const google::protobuf::MessageLite& message) {
  return absl::DataLossError(absl::StrCat("the node's reply is no ", message.GetTypeName()));
}

// Copies fields to `head` up to the payload; returns the payload's bytes, 0 at the end.
absl::StatusOr<uint32_t> ReadHead(CodedInputStream& in,
                                  const google::protobuf::MessageLite& message, std::string& head) {
  StringOutputStream head_stream(&head);
  CodedOutputStream out(&head_stream);
  while (const uint32_t tag = in.ReadTag()) {
    uint32_t payload_bytes = 0;
    if (tag == kPayloadTag && in.ReadVarint32(&payload_bytes)) return payload_bytes;
    if (tag == kPayloadTag || !WireFormatLite::SkipField(&in, tag, &out)) return Malformed(message);
  }
  return 0;
}

}  // namespace

grpc::ByteBuffer Serialize(const google::protobuf::MessageLite& message) {
  grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

grpc::ByteBuffer SerializeWithPayload(const google::protobuf::MessageLite& header,
                                      absl::Span<const std::byte> payload) {
  std::string head = header.SerializeAsString();
  uint8_t tag[kTagAndLengthBytesMax];
  uint8_t* end = CodedOutputStream::WriteVarint32ToArray(kPayloadTag, tag);
  end = CodedOutputStream::WriteVarint64ToArray(payload.size(), end);
  head.append(reinterpret_cast<const char*>(tag), static_cast<size_t>(end - tag));
  const grpc::Slice slices[] = {grpc::Slice(head), grpc::Slice(payload.data(), payload.size())};
  return grpc::ByteBuffer(slices, 2);
}

absl::Status Parse(grpc::ByteBuffer& buffer, google::protobuf::MessageLite& message) {
  grpc::ProtoBufferReader reader(&buffer);
  if (!reader.status().ok() || !message.ParseFromZeroCopyStream(&reader)) return Malformed(message);
  return absl::OkStatus();
}

absl::Status ParseWithPayload(grpc::ByteBuffer& buffer, google::protobuf::MessageLite& header,
                              const PayloadPlan& plan) {
  grpc::ProtoBufferReader reader(&buffer);
  if (!reader.status().ok()) return Malformed(header);
  CodedInputStream in(&reader);
  std::string head;
  FQ_ASSIGN_OR_RETURN(const uint32_t payload_bytes, ReadHead(in, header, head));
  if (!header.ParseFromString(head)) return Malformed(header);
  FQ_ASSIGN_OR_RETURN(const auto places, plan(payload_bytes));
  for (absl::Span<std::byte> place : places) {
    if (!in.ReadRaw(place.data(), static_cast<int>(place.size()))) return Malformed(header);
  }
  return absl::OkStatus();
}

}  // namespace fq::client
