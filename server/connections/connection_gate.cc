#include "server/connections/connection_gate.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/connections/listen_tcp.h"
#include "server/socket_file.h"
#include "server/to_bytes.h"

namespace fq {
namespace {

constexpr Milliseconds kAcceptPause{10};  // when descriptors or threads run out
constexpr Milliseconds kFarewell{500};    // for bytes on their way when the node stops

std::string AddressOf(const sockaddr_storage& address, socklen_t bytes) {
  if (address.ss_family == AF_UNIX) return "unix";
  char host[NI_MAXHOST] = "?", port[NI_MAXSERV] = "?";
  getnameinfo(reinterpret_cast<const sockaddr*>(&address), bytes, host, sizeof(host), port,
              sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV);
  return absl::StrCat(host, ":", port);
}

// Label of fq_connections_refused_total.
const char* ReasonOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return "protocol";
    case absl::StatusCode::kResourceExhausted:
      return "flood";
    case absl::StatusCode::kDeadlineExceeded:
      return "timeout";
    case absl::StatusCode::kUnauthenticated:
      return "tls";
    default:
      return "limit";
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<ConnectionGate>> ConnectionGate::Start(Setup setup) {
  FQ_ASSIGN_OR_RETURN(const RandomId id, MakeRandomId());
  std::unique_ptr<ConnectionGate> gate(new ConnectionGate(std::move(setup), id));
  if (gate->wake_.get() < 0) return absl::UnavailableError("connections: no eventfd");
  FQ_RETURN_IF_ERROR(gate->Listen());
  gate->thread_ = std::thread([g = gate.get()] { g->Serve(); });
  return gate;
}

ConnectionGate::ConnectionGate(Setup setup, const RandomId& id)
    : setup_(std::move(setup)),
      name_(absl::StrCat("flashquant.", absl::BytesToHexString(ToBytes(id)))),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      requests_(setup_.options->max_message_bytes) {
  context_.requests = &requests_;
  context_.peers = setup_.peers;
  context_.times = setup_.times;
  context_.serve = setup_.serve;
  context_.ended = [this](const Peer& peer, const absl::Status& status) { OnEnded(peer, status); };
}

absl::Status ConnectionGate::Listen() {
  const Options& options = *setup_.options;
  if (!options.tls_cert.empty()) {
    FQ_ASSIGN_OR_RETURN(
        context_.tls, TlsContext::Load({options.tls_cert, options.tls_key, options.tls_client_ca}));
  }
  if (!options.socket.empty()) {
    FQ_ASSIGN_OR_RETURN(OwnedFd socket,
                        ListenUnix(options.socket, SOCK_STREAM, SocketModeBits(options)));
    listeners_.push_back({std::move(socket), Peer::Transport::kUnix});
  }
  if (options.listen.empty()) return absl::OkStatus();
  FQ_ASSIGN_OR_RETURN(HostPort at, ParseHostPort("listen", options.listen));
  FQ_ASSIGN_OR_RETURN(TcpListeners tcp, ListenTcp(at));
  tcp_port_ = tcp.port;
  for (OwnedFd& socket : tcp.sockets) {
    listeners_.push_back({std::move(socket), context_.tls != nullptr ? Peer::Transport::kTls
                                                                     : Peer::Transport::kPlainTcp});
  }
  return absl::OkStatus();
}

ConnectionGate::~ConnectionGate() {
  stopping_ = true;
  Wake();
  if (thread_.joinable()) thread_.join();
  if (!setup_.options->socket.empty() && !listeners_.empty()) {
    unlink(setup_.options->socket.c_str());
  }
}

void ConnectionGate::Wake() const {
  const uint64_t one = 1;
  while (write(wake_.get(), &one, sizeof(one)) < 0 && errno == EINTR) {
  }
}

void ConnectionGate::Serve() {
  std::vector<pollfd> polled;
  while (!stopping_) {
    polled = {{wake_.get(), POLLIN, 0}};
    for (const Listener& listener : listeners_) {
      polled.push_back({listener.socket.get(), POLLIN, 0});
    }
    if (poll(polled.data(), polled.size(), -1) < 0) continue;  // a signal
    RemoveEnded();
    for (size_t i = 0; i < listeners_.size(); ++i) {
      if (polled[i + 1].revents != 0) Accept(listeners_[i]);
    }
  }
  RemoveAll();
}

void ConnectionGate::Accept(const Listener& listener) {
  sockaddr_storage address{};
  socklen_t bytes = sizeof(address);
  OwnedFd socket(accept4(listener.socket.get(), reinterpret_cast<sockaddr*>(&address), &bytes,
                         SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (socket.get() < 0) {
    if (errno == EMFILE || errno == ENFILE) std::this_thread::sleep_for(kAcceptPause);
    return;
  }
  Peer peer;
  peer.transport = listener.transport;
  peer.address = AddressOf(address, bytes);
  if (!MakeRoom()) {
    return OnEnded(peer,
                   absl::AbortedError(absl::StrCat(connections_.size(),
                                                   " connections, and all in use: max-connections "
                                                   "is ",
                                                   setup_.options->max_connections)));
  }
  const int on = 1;
  if (listener.transport != Peer::Transport::kUnix) {
    setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  }
  try {  // std::thread reports by an exception; it ends here
    connections_.push_back(std::make_unique<Connection>(
        &context_, absl::StrCat(name_, ".", ++accepted_), std::move(socket), peer));
  } catch (const std::system_error& e) {
    OnEnded(peer, absl::AbortedError(absl::StrCat("no thread for a connection: ", e.what())));
    std::this_thread::sleep_for(kAcceptPause);
  }
}

// False when everybody who is there has asked for something.
bool ConnectionGate::MakeRoom() {
  if (connections_.size() < setup_.options->max_connections) return true;
  RemoveEnded();
  if (connections_.size() < setup_.options->max_connections) return true;
  auto idle = std::find_if(connections_.begin(), connections_.end(),
                           [](const auto& connection) { return !connection->has_asked(); });
  if (idle == connections_.end()) return false;
  connections_.erase(idle);
  return true;
}

void ConnectionGate::RemoveEnded() {
  uint64_t ended = 0;
  if (read(wake_.get(), &ended, sizeof(ended)) < 0 && errno != EAGAIN) return;
  connections_.remove_if([](const auto& connection) { return connection->is_over(); });
}

void ConnectionGate::RemoveAll() {
  const MonotonicTime deadline = SteadyNow() + kFarewell;
  pollfd polled{wake_.get(), POLLIN, 0};
  while (!connections_.empty() && SteadyNow() < deadline) {
    poll(&polled, 1, static_cast<int>(kAcceptPause.count()));
    RemoveEnded();
  }
  for (const auto& connection : connections_) connection->HangUp();
  connections_.clear();
}

void ConnectionGate::OnEnded(const Peer& peer, const absl::Status& status) {
  Wake();
  if (status.ok() || stopping_) return;
  setup_.metrics->Add(Metric::kConnectionsRefused, {ReasonOf(status)}, 1);
  absl::MutexLock lock(&log_mutex_);
  if (!log_pace_.Take(SteadyNow())) return;
  setup_.log->Write(LogLevel::kWarning, "connection_refused",
                    {{"peer", peer.address},
                     {"rule", ReasonOf(status)},
                     {"reason", std::string(status.message())}});
}

}  // namespace fq
