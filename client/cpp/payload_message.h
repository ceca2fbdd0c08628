// Messages with page bytes, without protobuf's copies: the payload (field 15 of StoreRequest and
// LoadResponse) goes between the caller's memory and gRPC's slices with one copy. On the wire it is
// plain protobuf. Any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include <google/protobuf/message_lite.h>
#include <grpcpp/support/byte_buffer.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace fq::client {

grpc::ByteBuffer Serialize(const google::protobuf::MessageLite& message);

// `header` without its payload, and the payload behind it. The bytes are copied: gRPC may still
// hold them when a call has been cancelled.
grpc::ByteBuffer SerializeWithPayload(const google::protobuf::MessageLite& header,
                                      absl::Span<const std::byte> payload);

// DataLoss when it is not a message of that type.
absl::Status Parse(grpc::ByteBuffer& buffer, google::protobuf::MessageLite& message);

// Where the next bytes of a payload go; all pieces together are as long as the payload.
using PayloadPlan =
    std::function<absl::StatusOr<std::vector<absl::Span<std::byte>>>(uint64_t payload_bytes)>;

// Parses all fields before the payload into `header`, asks `plan` where the payload goes, and puts
// it there. Without a payload `plan` is asked for 0 bytes.
absl::Status ParseWithPayload(grpc::ByteBuffer& buffer, google::protobuf::MessageLite& header,
                              const PayloadPlan& plan);

}  // namespace fq::client
