// Where the segment socket of a gRPC socket lies.
#pragma once

#include <string>

#include "absl/strings/str_cat.h"

namespace fq {

inline std::string SegmentSocketPath(const std::string& grpc_socket) {
  return absl::StrCat(grpc_socket, ".seg");
}

}  // namespace fq
