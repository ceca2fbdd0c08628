// The Unix socket over which clients on this host call without gRPC's detours
// (proto/call_socket.md). A thread for each connection receives, runs and answers its calls, one at
// a time, under the same limits as gRPC's (call_runner.h).
#pragma once

#include <atomic>
#include <list>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/node.h"
#include "server/rpc/call_packet.h"
#include "server/rpc/call_runner.h"
#include "server/rpc/kv_cache_calls.h"
#include "server/segments.h"

namespace fq {

// One thread creates, stops and destroys it.
class CallSocket {
 public:
  static constexpr size_t kMaxConnections = 256;

  // Binds `path`, which is free (socket_file.h), and serves. Unavailable names the path and why.
  static absl::StatusOr<std::unique_ptr<CallSocket>> Start(Node* node, const std::string& path);
  ~CallSocket();  // stops, and removes the socket

  // Takes no more calls, cancels those that run, and returns when they have been answered.
  void Stop();

 private:
  struct Connection {
    explicit Connection(OwnedFd own) : fd(std::move(own)) {}
    OwnedFd fd;
    std::atomic<bool> ended{false};
    std::thread thread;
  };

  CallSocket(Node* node, std::string path, OwnedFd listener, OwnedFd wake);
  void WakeAcceptor();
  void AcceptUntilStopped();
  void Accept();
  void DropEnded();
  void Serve(Connection& connection);
  bool AnswerOne(int fd, char* buffer);
  std::string AnswerStore(const CallPacket& call, std::function<bool()> cancelled) const;
  std::string Answer(const absl::StatusOr<CallPacket>& call, std::function<bool()> cancelled) const;

  Node* const node_;
  const std::string path_, tenant_;
  const OwnedFd listener_, wake_;  // an eventfd: the acceptor has something to do
  const CallRunner runner_;
  const KvCacheCalls calls_;
  std::atomic<bool> stopping_{false};
  std::list<Connection> connections_;  // of the accepting thread
  std::thread acceptor_;
};

}  // namespace fq
