// The connection to one node: unary calls that end in time whatever the node does, and the circuit
// breaker. Thread-safe.
#pragma once

#include <memory>
#include <string>

#include <grpcpp/channel.h>
#include <grpcpp/support/byte_buffer.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/cpp/breaker.h"
#include "client/cpp/call_socket.h"
#include "client/cpp/client_options.h"

namespace fq::client {

// How much longer than its deadline a call may take: gRPC ends it itself a little after.
inline constexpr absl::Duration kTimerSlack = absl::Milliseconds(5);

// A way beside gRPC, for calls that fit it.
struct SocketWay {
  CallSocket* socket = nullptr;  // null: none
  CallKind kind = CallKind::kLookup;
};

class NodeLink {
 public:
  // Connects lazily. InvalidArgument: the endpoint or the TLS files make no sense.
  static absl::StatusOr<std::shared_ptr<NodeLink>> Create(const ClientOptions& options);

  // One unary call, "/flashquant.v1.KvCache/Lookup", of a valid buffer. Returns within deadline +
  // kTimerSlack. Unavailable at once while the breaker is open. Errors of the node as they are.
  absl::StatusOr<grpc::ByteBuffer> Call(const std::string& method, grpc::ByteBuffer request,
                                        absl::Time deadline, const SocketWay& beside = {});

  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }
  const ClientOptions& options() const { return options_; }
  absl::Time DeadlineOf(absl::Duration wanted) const;

  // Unavailable while the breaker is open; otherwise the outcome must be reported.
  absl::Status AskBreaker();
  void Report(const absl::Status& outcome);

 private:
  absl::StatusOr<grpc::ByteBuffer> CallOnGrpc(const std::string& method, grpc::ByteBuffer request,
                                              absl::Time deadline);
  NodeLink(const ClientOptions& options, std::shared_ptr<grpc::Channel> channel)
      : options_(options), channel_(std::move(channel)), breaker_(options.breaker) {}

  const ClientOptions options_;
  const std::shared_ptr<grpc::Channel> channel_;
  Breaker breaker_;
};

// Whether the node did not answer: dead, frozen, or not reachable.
bool NoAnswer(const absl::Status& status);

}  // namespace fq::client
