// Between the wire's messages and this client's plain values. Any thread.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "client/cpp/blocks.h"
#include "client/cpp/keys.h"
#include "client/cpp/node_info.h"
#include "client/cpp/session.h"
#include "flashquant/v1/admin.pb.h"
#include "flashquant/v1/kv_cache.pb.h"

namespace fq::client {

namespace wire = ::flashquant::v1;

std::string ToBytes(absl::Span<const BlockKey> keys);
wire::SessionRequest ToWire(const SessionSpec& spec, const std::string& client_name);
void ToWire(const PageLayout& layout, const std::vector<BlockPlace>& places, wire::Pages& pages);

Descriptor FromWire(const wire::NamespaceDescriptor& descriptor);
absl::StatusOr<SessionInfo> FromWire(const wire::SessionResponse& response);
Match MissBecause(absl::Status why);
Match FromWire(const wire::LookupResponse& response);
NodeStatus FromWire(const wire::StatusResponse& response);
NamespaceInfo FromWire(const wire::NamespaceInfo& info);

// One status per block, or DataLoss: the reply has another number of them.
template <typename Response>
absl::StatusOr<std::vector<BlockStatus>> StatusesFromWire(const Response& response, size_t blocks) {
  if (static_cast<size_t>(response.statuses_size()) != blocks) {
    return absl::DataLossError("the node answered for another number of blocks");
  }
  std::vector<BlockStatus> statuses;
  for (int status : response.statuses()) statuses.push_back(static_cast<BlockStatus>(status));
  return statuses;
}

}  // namespace fq::client
