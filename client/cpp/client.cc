#include "client/cpp/client.h"

#include <utility>

#include "client/cpp/node_link.h"
#include "client/cpp/payload_message.h"
#include "client/cpp/proto_mapping.h"
#include "client/cpp/session_keeper.h"
#include "kernels/base/status_macros.h"

namespace fq::client {
namespace {

template <typename Response, typename Request>
absl::StatusOr<Response> Ask(NodeLink& link, const char* method, const Request& request,
                             CallDeadline deadline) {
  FQ_ASSIGN_OR_RETURN(grpc::ByteBuffer reply,
                      link.Call(method, Serialize(request), link.DeadlineOf(deadline)));
  Response response;
  FQ_RETURN_IF_ERROR(Parse(reply, response));
  return response;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Client>> Client::Create(const ClientOptions& options) {
  FQ_ASSIGN_OR_RETURN(auto link, NodeLink::Create(options));
  return std::unique_ptr<Client>(new Client(std::move(link)));
}

Client::Client(std::shared_ptr<NodeLink> link) : link_(std::move(link)) {}
Client::~Client() = default;

absl::StatusOr<std::unique_ptr<Session>> Client::Open(const SessionSpec& spec,
                                                      CallDeadline deadline) {
  auto keeper = std::make_unique<Session::Keeper>(link_, spec);
  FQ_RETURN_IF_ERROR(keeper->Get(link_->DeadlineOf(deadline)).status());
  return std::unique_ptr<Session>(new Session(std::move(keeper)));
}

absl::StatusOr<NodeStatus> Client::Status(CallDeadline deadline) {
  FQ_ASSIGN_OR_RETURN(auto response,
                      Ask<wire::StatusResponse>(*link_, "/flashquant.v1.Admin/Status",
                                                wire::StatusRequest(), deadline));
  return FromWire(response);
}

absl::StatusOr<std::vector<NamespaceInfo>> Client::Namespaces(const std::string& name,
                                                              CallDeadline deadline) {
  wire::NamespacesRequest request;
  request.set_name(name);
  FQ_ASSIGN_OR_RETURN(
      auto response,
      Ask<wire::NamespacesResponse>(*link_, "/flashquant.v1.Admin/Namespaces", request, deadline));
  std::vector<NamespaceInfo> infos;
  for (const auto& info : response.namespaces()) infos.push_back(FromWire(info));
  return infos;
}

absl::StatusOr<Verified> Client::Verify(const std::string& namespace_name, CallDeadline deadline) {
  wire::VerifyRequest request;
  request.set_namespace_name(namespace_name);
  FQ_ASSIGN_OR_RETURN(auto response, Ask<wire::VerifyResponse>(
                                         *link_, "/flashquant.v1.Admin/Verify", request, deadline));
  return Verified{response.blocks(), response.bytes(), response.failed()};
}

absl::StatusOr<Purged> Client::Purge(const std::string& namespace_name, CallDeadline deadline) {
  wire::PurgeRequest request;
  request.set_namespace_name(namespace_name);
  FQ_ASSIGN_OR_RETURN(auto response, Ask<wire::PurgeResponse>(*link_, "/flashquant.v1.Admin/Purge",
                                                              request, deadline));
  return Purged{response.blocks(), response.bytes()};
}

}  // namespace fq::client
