// The C++ client of a FlashQuant node. Thread-safe; making a Client does not connect.
//
//   auto client = Client::Create(options);
//   auto session = (*client)->Open(spec, deadline);
//   auto keys = KeysOf((*session)->Chain(salt), tokens);
//   Match match = (*session)->Lookup({keys});
//
// A Client outlives its sessions.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/blocks.h"
#include "client/cpp/client_options.h"
#include "client/cpp/keys.h"
#include "client/cpp/node_info.h"
#include "client/cpp/retry_after.h"
#include "client/cpp/segment.h"
#include "client/cpp/session.h"

namespace fq::client {

class Client {
 public:
  // InvalidArgument: the endpoint or the TLS texts make no sense.
  static absl::StatusOr<std::unique_ptr<Client>> Create(const ClientOptions& options);
  ~Client();

  // FailedPrecondition: the namespace exists with another descriptor, or its codec set is missing.
  absl::StatusOr<std::unique_ptr<Session>> Open(const SessionSpec& spec, CallDeadline deadline);

  absl::StatusOr<NodeStatus> Status(CallDeadline deadline);

  // All of the caller's tenant (empty name), or one. NotFound: none of that name.
  absl::StatusOr<std::vector<NamespaceInfo>> Namespaces(const std::string& name,
                                                        CallDeadline deadline);
  absl::StatusOr<Verified> Verify(const std::string& namespace_name, CallDeadline deadline);
  absl::StatusOr<Purged> Purge(const std::string& namespace_name, CallDeadline deadline);

 private:
  explicit Client(std::shared_ptr<NodeLink> link);
  const std::shared_ptr<NodeLink> link_;  // its sessions hold it too
};

}  // namespace fq::client
