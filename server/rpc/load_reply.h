// A LoadResponse on the wire without a copy of its payload: the pages go out from where they were
// decoded. The bytes are those that protobuf would write. Pure functions, any thread.
#pragma once

#include <string>

#include <grpcpp/support/byte_buffer.h>

#include "absl/status/statusor.h"
#include "server/rpc/wire.h"

namespace fq {

struct LoadReply {
  wire::LoadResponse head;  // without the payload
  std::string payload;
};

// InvalidArgument when the bytes are no LoadRequest.
absl::StatusOr<wire::LoadRequest> ParseLoadRequest(const grpc::ByteBuffer& message);

// `head` has no payload; an empty `payload` is left out, as proto3 does.
grpc::ByteBuffer JoinLoadReply(const wire::LoadResponse& head, std::string payload);

}  // namespace fq
