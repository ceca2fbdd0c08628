// The Unix socket over which clients hand in memory segments (proto/segment_socket.md). One thread
// of its own serves all connections; nothing a peer sends can block or end it.
#pragma once

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/device.h"
#include "server/metrics.h"
#include "server/segments.h"
#include "server/sessions.h"

namespace fq {

// One thread creates and destroys it.
class SegmentSocket {
 public:
  struct Setup {
    std::string path;
    uint32_t mode =
        0600;  // of the socket; without group or others' write, peers must be of our uid or root
    SessionRegistry* sessions = nullptr;
    Metrics* metrics = nullptr;
    Device* device = nullptr;  // null: no segments of device memory
  };

  // Binds and serves. The path is free (socket_file.h). Unavailable names the path and why.
  static absl::StatusOr<std::unique_ptr<SegmentSocket>> Start(const Setup& setup);
  ~SegmentSocket();  // closes connections and removes the socket

 private:
  struct Connection {
    OwnedFd fd;
    // What it asked to unregister and calls still use: answered, and read from, when they end.
    std::weak_ptr<const void> leaving;
    uint32_t leaving_id = 0;
  };

  SegmentSocket(const Setup& setup, OwnedFd listener, OwnedFd stop);
  void Serve();
  void Accept();
  bool Answer(Connection& connection);
  bool AnswerLeaving(Connection& connection);

  const Setup setup_;
  const OwnedFd listener_, stop_;
  std::vector<Connection> connections_;  // of the serving thread
  std::thread thread_;
};

}  // namespace fq
