#include "server/connections/connection.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace fq {
namespace {

absl::Status SystemError(absl::string_view what) {
  return absl::UnavailableError(
      absl::StrCat("connection: ", what, ": ", std::generic_category().message(errno)));
}

struct Pair {
  OwnedFd ours, grpcs;
};

// gRPC sees `name`, in Linux's abstract space, as the address of its peer.
absl::StatusOr<Pair> MakePair(const std::string& name) {
  int fds[2] = {-1, -1};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) != 0) {
    return SystemError("socketpair");
  }
  Pair pair{OwnedFd(fds[0]), OwnedFd(fds[1])};
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  const size_t bytes = offsetof(sockaddr_un, sun_path) + 1 + name.size();
  if (bind(pair.ours.get(), reinterpret_cast<sockaddr*>(&address), static_cast<socklen_t>(bytes)) !=
      0) {
    return SystemError("bind");
  }
  return pair;
}

// OpenSSL writes without MSG_NOSIGNAL.
void BlockBrokenPipes() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

}  // namespace

Connection::Connection(const ConnectionContext* context, std::string name, OwnedFd socket,
                       Peer peer)
    : context_(context),
      name_(std::move(name)),
      stream_(std::move(socket)),
      peer_(std::move(peer)),
      begin_(SteadyNow()),
      thread_([this] { Run(); }) {}

Connection::~Connection() {
  HangUp();
  thread_.join();
}

void Connection::HangUp() {
  flags_.hang_up = true;
  stream_.HangUp();
}

void Connection::Run() {
  BlockBrokenPipes();
  absl::Status status = Serve();
  if (flags_.hang_up) status = absl::CancelledError("its place was given to another");
  stream_.HangUp();
  over_ = true;
  context_->ended(peer_, status);
}

absl::Status Connection::Serve() {
  if (peer_.transport == Peer::Transport::kTls) {
    FQ_RETURN_IF_ERROR(ShakeHands(begin_ + context_->times.introduction));
    peer_.certificate = ClientCertificate(stream_.tls());
  }
  FQ_ASSIGN_OR_RETURN(Pair pair, MakePair(name_));
  const auto known = context_->peers->Add(absl::StrCat("unix-abstract:", name_), peer_);
  context_->serve(std::move(pair.grpcs));
  return Relay(&stream_, pair.ours.get(), context_->requests, context_->times, begin_, &flags_)
      .Run();
}

absl::Status Connection::ShakeHands(MonotonicTime deadline) {
  FQ_ASSIGN_OR_RETURN(TlsConnection tls, context_->tls->Accept(stream_.fd()));
  stream_.UseTls(std::move(tls));
  for (;;) {
    FQ_ASSIGN_OR_RETURN(const bool done, stream_.Handshake());
    if (done) return absl::OkStatus();
    if (flags_.hang_up) return absl::CancelledError("told to hang up");
    const auto left = std::chrono::duration_cast<Milliseconds>(deadline - SteadyNow());
    pollfd polled{stream_.fd(), stream_.read_events(), 0};
    if (left.count() <= 0 || poll(&polled, 1, static_cast<int>(left.count())) == 0) {
      return absl::DeadlineExceededError(
          absl::StrCat("no TLS handshake within ", context_->times.introduction.count(), " ms"));
    }
  }
}

}  // namespace fq
