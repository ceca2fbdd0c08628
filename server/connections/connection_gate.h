// Everybody who connects comes through here: it listens, accepts, bounds how many are connected and
// lets each speak to gRPC through a relay (connection.h). When all places are taken, a newcomer
// gets that of the connection that has been there longest without a request; if all have asked, the
// newcomer is refused.
#pragma once

#include <atomic>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/connected_peers.h"
#include "server/connections/connection.h"
#include "server/connections/token_bucket.h"
#include "server/log.h"
#include "server/metrics.h"
#include "server/options.h"
#include "server/random_id.h"

namespace fq {

// One thread creates and destroys it.
class ConnectionGate {
 public:
  struct Setup {
    const Options* options;
    ConnectedPeers* peers;
    const Metrics* metrics;
    const Log* log;
    std::function<void(OwnedFd)> serve;  // gives gRPC its end of a connection; any thread
    ConnectionTimes times = {};
  };

  // Listens on --socket and --listen. All that `setup` points to outlives it. InvalidArgument: a
  // certificate or key cannot be read. Unavailable: an address cannot be bound.
  static absl::StatusOr<std::unique_ptr<ConnectionGate>> Start(Setup setup);

  // Call it when gRPC has hung up: what is on its way to peers still goes out, for a moment.
  ~ConnectionGate();

  int tcp_port() const { return tcp_port_; }  // 0 without --listen

 private:
  struct Listener {
    OwnedFd socket;
    Peer::Transport transport;
  };

  ConnectionGate(Setup setup, const RandomId& id);
  absl::Status Listen();
  void Serve();
  void Wake() const;
  void Accept(const Listener& listener);
  bool MakeRoom();
  void RemoveEnded();
  void RemoveAll();
  void OnEnded(const Peer& peer, const absl::Status& status);

  const Setup setup_;
  const std::string name_;  // prefix of the names of connections
  const OwnedFd wake_;      // an eventfd: a connection has ended, or stop
  RequestRoom requests_;
  ConnectionContext context_;
  std::vector<Listener> listeners_;
  std::list<std::unique_ptr<Connection>> connections_;  // oldest first; of the thread
  uint64_t accepted_ = 0;                               // of the thread
  int tcp_port_ = 0;
  std::atomic<bool> stopping_{false};
  absl::Mutex log_mutex_;
  TokenBucket log_pace_ ABSL_GUARDED_BY(log_mutex_){10, 1};  // a flood must not fill the log
  std::thread thread_;
};

}  // namespace fq
