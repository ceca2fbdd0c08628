// Client side of the call socket (proto/call_socket.md): calls of one session, a packet each way. A
// call has a connection to itself; a few are kept for the next ones. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/cpp/segment.h"

namespace fq::client {

// Values are on the wire.
enum class CallKind : uint32_t { kStore = 1, kLookup = 2, kLoad = 3, kRelease = 4 };

class CallSocket {
 public:
  // Connects when there is a call.
  explicit CallSocket(std::string path) : path_(std::move(path)) {}

  // Sends a message and waits for the reply's, at most until deadline + kTimerSlack (node_link.h).
  // Errors: the node's; DeadlineExceeded and Unavailable without an answer. Nothing: the message is
  // too long for a packet, or the socket takes no more; it was not sent, ask gRPC.
  std::optional<absl::StatusOr<std::string>> Call(CallKind kind, const std::string& message,
                                                  absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Connection {
    OwnedFd fd;
    size_t max_bytes = 0;
    std::unique_ptr<char[]> room;  // [max_bytes], for replies; lasts, because filling it is slow
  };
  absl::StatusOr<Connection> Take(absl::Time give_up) ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<Connection> Connect(absl::Time give_up) const;
  void GiveBack(Connection connection) ABSL_LOCKS_EXCLUDED(mu_);

  const std::string path_;
  absl::Mutex mu_;
  std::vector<Connection> idle_ ABSL_GUARDED_BY(mu_);
};

}  // namespace fq::client
