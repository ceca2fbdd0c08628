#include "client/cpp/node_link.h"

#include <grpc/grpc.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "client/cpp/retry_after.h"
#include "kernels/base/status_macros.h"

namespace fq::client {
namespace {

constexpr int kReconnectMsFirst = 50;
constexpr int kConnectMsLeast = 2000, kConnectMsMost = 3'600'000;
constexpr int kReconnectMsMax = 1000;

using Stub = grpc::TemplatedGenericStub<grpc::ByteBuffer, grpc::ByteBuffer>;

// A call in flight. It belongs to the thread that waits for it and is never left to gRPC's
// callback: the context holds the channel, and whoever lets go of the last channel joins gRPC's
// threads, which one of those threads cannot.
struct CallState {
  grpc::ClientContext context;
  grpc::ByteBuffer request, reply;
  absl::Mutex mu;
  absl::CondVar finished;
  bool done ABSL_GUARDED_BY(mu) = false;
  absl::Status status ABSL_GUARDED_BY(mu);
};

absl::Status FromGrpc(const grpc::Status& status, const grpc::ClientContext& context) {
  if (status.ok()) return absl::OkStatus();
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  const auto& metadata = context.GetServerTrailingMetadata();
  if (const auto it = metadata.find("retry-after-ms"); it != metadata.end()) {
    result.SetPayload(kRetryAfterPayload,
                      absl::Cord(absl::string_view(it->second.data(), it->second.size())));
  }
  return result;
}

// gRPC takes more, and what it cannot take for a host whose name does not resolve.
absl::Status CheckEndpoint(const std::string& endpoint) {
  const size_t colon = endpoint.rfind(':');
  uint32_t port = 0;
  if (absl::StartsWith(endpoint, "unix:///")) return absl::OkStatus();
  if (colon != std::string::npos && colon > 0 && !absl::StrContains(endpoint, '/') &&
      absl::SimpleAtoi(endpoint.substr(colon + 1), &port) && port > 0 && port <= 65535) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("endpoint = ", endpoint, ": must be unix:///path or host:port"));
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> CredentialsOf(
    const ClientOptions& options) {
  const Tls& tls = options.tls;
  if (tls.ca.empty() && tls.cert.empty() && tls.key.empty()) {
    return grpc::InsecureChannelCredentials();
  }
  if (absl::StartsWith(options.endpoint, "unix:")) {
    return absl::InvalidArgumentError(
        absl::StrCat("endpoint = ", options.endpoint, ": TLS is for host:port"));
  }
  if (tls.ca.empty() || tls.cert.empty() != tls.key.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tls: there is ", tls.ca.empty() ? "no" : "a", " ca, ", tls.cert.empty() ? "no" : "a",
        " cert, ", tls.key.empty() ? "no" : "a", " key; needs a ca, and cert and key together"));
  }
  return grpc::SslCredentials({tls.ca, tls.key, tls.cert});
}

// Given to one attempt to connect: no less than to a call, which would end as if nobody were there.
int ConnectMs(const ClientOptions& options) {
  return static_cast<int>(std::clamp<int64_t>(absl::ToInt64Milliseconds(options.deadline),
                                              kConnectMsLeast, kConnectMsMost));
}

grpc::ChannelArguments Arguments(const ClientOptions& options) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes));
  arguments.SetMaxSendMessageSize(static_cast<int>(options.max_message_bytes));
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kReconnectMsFirst);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, ConnectMs(options));
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kReconnectMsMax);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // would read the environment
  return arguments;
}

void Start(Stub& stub, const std::string& method, CallState& call) {
  stub.UnaryCall(&call.context, method, {}, &call.request, &call.reply,
                 [&call](const grpc::Status& status) {
                   absl::MutexLock lock(&call.mu);
                   call.status = FromGrpc(status, call.context);
                   call.done = true;
                   call.finished.SignalAll();
                 });
}

// A cancelled call ends at once, without the node.
absl::Status Wait(CallState& call, absl::Time deadline) {
  absl::MutexLock lock(&call.mu);
  while (!call.done) {
    if (!call.finished.WaitWithDeadline(&call.mu, deadline + kTimerSlack) || call.done) continue;
    call.context.TryCancel();
    while (!call.done) call.finished.Wait(&call.mu);
    return absl::DeadlineExceededError("the node did not answer in time");
  }
  return call.status;
}

// Nothing when it must go over gRPC.
std::optional<absl::StatusOr<grpc::ByteBuffer>> CallOnSocket(const SocketWay& way,
                                                             const grpc::ByteBuffer& request,
                                                             absl::Time deadline) {
  if (way.socket == nullptr) return std::nullopt;
  std::vector<grpc::Slice> slices;
  if (!request.Dump(&slices).ok()) return std::nullopt;
  std::string message;
  for (const grpc::Slice& slice : slices) {
    message.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  auto reply = way.socket->Call(way.kind, message, deadline);
  if (!reply.has_value()) return std::nullopt;
  if (!reply->ok()) return reply->status();
  const grpc::Slice slice(**reply);
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace

absl::StatusOr<std::shared_ptr<NodeLink>> NodeLink::Create(const ClientOptions& options) {
  FQ_RETURN_IF_ERROR(CheckEndpoint(options.endpoint));
  if (options.max_message_bytes > INT32_MAX) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_message_bytes is ", options.max_message_bytes, ", must be at most ", INT32_MAX));
  }
  FQ_ASSIGN_OR_RETURN(auto credentials, CredentialsOf(options));
  // Held for good: the library's own shutdown waits up to 10 s for its backup poller (gRPC 1.51).
  grpc_init();
  auto channel = grpc::CreateCustomChannel(options.endpoint, credentials, Arguments(options));
  return std::shared_ptr<NodeLink>(new NodeLink(options, std::move(channel)));
}

absl::Time NodeLink::DeadlineOf(absl::Duration wanted) const {
  return absl::Now() + (wanted > absl::ZeroDuration() ? wanted : options_.deadline);
}

absl::StatusOr<grpc::ByteBuffer> NodeLink::Call(const std::string& method, grpc::ByteBuffer request,
                                                absl::Time deadline, const SocketWay& beside) {
  FQ_RETURN_IF_ERROR(AskBreaker());
  auto reply = CallOnSocket(beside, request, deadline);
  if (!reply.has_value()) reply = CallOnGrpc(method, std::move(request), deadline);
  Report(reply->status());
  return *std::move(reply);
}

absl::StatusOr<grpc::ByteBuffer> NodeLink::CallOnGrpc(const std::string& method,
                                                      grpc::ByteBuffer request,
                                                      absl::Time deadline) {
  CallState call;
  call.request.Swap(&request);
  call.context.set_deadline(absl::ToChronoTime(deadline));
  Stub stub(channel_);
  Start(stub, method, call);
  FQ_RETURN_IF_ERROR(Wait(call, deadline));
  return std::move(call.reply);
}

absl::Status NodeLink::AskBreaker() {
  if (breaker_.Allow(absl::Now())) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("circuit breaker: ", options_.endpoint, " failed ",
                                             options_.breaker.failures, " times in a row; waiting ",
                                             absl::FormatDuration(options_.breaker.open_for)));
}

void NodeLink::Report(const absl::Status& outcome) {
  if (NoAnswer(outcome)) {
    breaker_.Failed(absl::Now());
  } else {
    breaker_.Succeeded();
  }
}

bool NoAnswer(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         absl::IsCancelled(status) || absl::IsUnknown(status) || absl::IsInternal(status);
}

}  // namespace fq::client
