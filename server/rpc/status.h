// The one table from absl::Status to gRPC. Any thread.
#pragma once

#include <string>

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace fq {

inline constexpr char kRetryAfterMetadata[] = "retry-after-ms";  // trailing metadata

// absl's codes are gRPC's by number.
inline grpc::StatusCode ToGrpcCode(absl::StatusCode code) {
  static_assert(static_cast<int>(absl::StatusCode::kUnauthenticated) == grpc::UNAUTHENTICATED);
  static_assert(static_cast<int>(absl::StatusCode::kInvalidArgument) == grpc::INVALID_ARGUMENT);
  return static_cast<grpc::StatusCode>(code);
}

inline grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(ToGrpcCode(status.code()), std::string(status.message()));
}

}  // namespace fq
