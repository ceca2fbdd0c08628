// One accepted connection: its thread does the TLS handshake, makes the peer known, gives gRPC one
// end of a socket pair and carries bytes until it is over.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "server/connected_peers.h"
#include "server/connections/peer_stream.h"
#include "server/connections/relay.h"
#include "server/connections/tls.h"

namespace fq {

// What all connections share; outlives them.
struct ConnectionContext {
  std::unique_ptr<TlsContext> tls;  // of TCP; null: plaintext
  ConnectedPeers* peers = nullptr;
  RequestRoom* requests = nullptr;
  ConnectionTimes times;
  std::function<void(OwnedFd)> serve;  // gives gRPC its end
  // Called last, by the connection's thread: how it ended, as Relay::Run and PeerStream::Handshake.
  std::function<void(const Peer&, const absl::Status&)> ended;
};

class Connection {
 public:
  // `name` is unique for the life of the process; starts the thread. throws std::system_error when
  // the system has no thread left.
  Connection(const ConnectionContext* context, std::string name, OwnedFd socket, Peer peer);
  ~Connection();  // hangs up and waits

  bool has_asked() const { return flags_.has_asked; }
  bool is_over() const { return over_; }
  void HangUp();

 private:
  void Run();
  absl::Status Serve();
  absl::Status ShakeHands(MonotonicTime deadline);

  const ConnectionContext* const context_;
  const std::string name_;
  PeerStream stream_;
  Peer peer_;
  const MonotonicTime begin_;
  Relay::Flags flags_;
  std::atomic<bool> over_{false};
  std::thread thread_;  // last: uses all of the above
};

}  // namespace fq
