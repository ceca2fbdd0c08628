// Where the sockets beside a gRPC socket lie.
#pragma once

#include <string>

#include "absl/strings/str_cat.h"

namespace fq {

inline std::string SegmentSocketPath(const std::string& grpc_socket) {
  return absl::StrCat(grpc_socket, ".seg");
}

inline std::string CallSocketPath(const std::string& grpc_socket) {
  return absl::StrCat(grpc_socket, ".call");
}

}  // namespace fq
