// Runs one unary call: deadline, place (here or on a worker), metrics; for gRPC the status on the
// wire too. Thread-safe.
#pragma once

#include <chrono>
#include <functional>
#include <optional>

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include "absl/status/status.h"
#include "server/call_context.h"
#include "server/node.h"
#include "server/rpc/reply_room.h"

namespace fq {

class CallRunner {
 public:
  struct Method {
    const char* name;
    enum class Place { kHere, kWorker, kFetcher } place;  // kHere: never blocks
    enum class Deadline { kCapped, kCallers } deadline;   // --max-deadline-ms, or the caller's own
  };
  using Body = std::function<absl::Status(const CallContext&)>;

  // Goes on with a call that waits, or answers it with an error. From any thread, once.
  using Resume = std::function<void(const absl::Status&)>;
  using Begin = std::function<absl::Status(Resume)>;

  explicit CallRunner(Node* node) : node_(node), replies_(node->options().max_message_bytes) {}

  // `body` checks, calls and fills; request and response live until it has returned.
  grpc::ServerUnaryReactor* Run(grpc::CallbackServerContext* context, const Method& method,
                                Body body) const;

  // The same in the calling thread: returns when `body` has, on whichever thread it ran. `brought`:
  // how long the caller will wait, from now on; none: it does not say.
  absl::Status RunHere(const Method& method, std::optional<std::chrono::nanoseconds> brought,
                       std::function<bool()> cancelled, const Body& body) const;

  // For calls that wait for something else first. `begin` runs here and never blocks; when it
  // returns OK it calls its `resume`, then or later, and `body` runs on a worker. Another status of
  // `begin` is the answer; `resume` is not called then.
  grpc::ServerUnaryReactor* RunAfter(grpc::CallbackServerContext* context, const Method& method,
                                     const Begin& begin, Body body) const;
  // The same in the calling thread, as RunHere; while it waits it is no worker.
  absl::Status RunHereAfter(const Method& method, std::optional<std::chrono::nanoseconds> brought,
                            std::function<bool()> cancelled, const Begin& begin,
                            const Body& body) const;

 private:
  void BeginAndGoOn(const CallContext& limits, const Begin& begin, Body body, Resume answer) const;
  CallContext Limits(const Method& method, std::optional<std::chrono::nanoseconds> brought,
                     std::function<bool()> cancelled) const;
  MonotonicTime DeadlineOf(const Method& method,
                           std::optional<std::chrono::nanoseconds> brought) const;

  Node* const node_;
  mutable ReplyRoom replies_;
};

}  // namespace fq
