#include "server/rpc/call_socket.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/rpc/call_methods.h"
#include "server/socket_file.h"

namespace fq {
namespace {

constexpr std::chrono::milliseconds kAcceptPause{10};  // when descriptors or threads run out

bool Send(int fd, const std::string& packet) {
  return send(fd, packet.data(), packet.size(), MSG_NOSIGNAL | MSG_DONTWAIT) ==
         static_cast<ssize_t>(packet.size());
}

bool HasHungUp(int fd) {
  pollfd polled{fd, POLLRDHUP, 0};
  return poll(&polled, 1, 0) > 0 && (polled.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

template <typename Request>
absl::Status Parse(absl::string_view message, Request& request) {
  if (request.ParseFromArray(message.data(), static_cast<int>(message.size()))) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("message of ", message.size(), " bytes: is no ", Request::descriptor()->name()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<CallSocket>> CallSocket::Start(Node* node, const std::string& path) {
  OwnedFd wake(eventfd(0, EFD_CLOEXEC));
  if (wake.get() < 0) return absl::UnavailableError(absl::StrCat(path, ": no eventfd"));
  FQ_ASSIGN_OR_RETURN(OwnedFd listener,
                      ListenUnix(path, SOCK_SEQPACKET, SocketModeBits(node->options())));
  return std::unique_ptr<CallSocket>(
      new CallSocket(node, path, std::move(listener), std::move(wake)));
}

CallSocket::CallSocket(Node* node, std::string path, OwnedFd listener, OwnedFd wake)
    : node_(node),
      path_(std::move(path)),
      tenant_(node->options().tenant),
      listener_(std::move(listener)),
      wake_(std::move(wake)),
      runner_(node),
      calls_(node) {
  acceptor_ = std::thread([this] { AcceptUntilStopped(); });
}

CallSocket::~CallSocket() {
  Stop();
  unlink(path_.c_str());
}

void CallSocket::Stop() {
  if (stopping_.exchange(true)) return;
  WakeAcceptor();
  acceptor_.join();
  // Only the way in: what is being answered still goes out.
  for (const Connection& connection : connections_) shutdown(connection.fd.get(), SHUT_RD);
  for (Connection& connection : connections_) connection.thread.join();
  connections_.clear();
}

void CallSocket::WakeAcceptor() {
  const uint64_t one = 1;
  while (write(wake_.get(), &one, sizeof(one)) < 0 && errno == EINTR) {
  }
}

void CallSocket::AcceptUntilStopped() {
  while (!stopping_) {
    pollfd polled[] = {{wake_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};
    if (poll(polled, 2, -1) < 0) continue;  // a signal
    uint64_t wakes = 0;
    if (polled[0].revents != 0 && read(wake_.get(), &wakes, sizeof(wakes)) > 0) DropEnded();
    if (polled[1].revents != 0 && !stopping_) Accept();
  }
}

void CallSocket::Accept() {
  OwnedFd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (fd.get() < 0) {
    if (errno == EMFILE || errno == ENFILE) std::this_thread::sleep_for(kAcceptPause);
    return;
  }
  if (connections_.size() >= kMaxConnections ||
      !MayUseSocket(fd.get(), SocketModeBits(node_->options())) ||
      !Send(fd.get(), GreetingPacket())) {
    return;
  }
  Connection& connection = connections_.emplace_back(std::move(fd));
  connection.thread = std::thread([this, &connection] { Serve(connection); });
}

void CallSocket::DropEnded() {
  for (auto it = connections_.begin(); it != connections_.end();) {
    if (!it->ended) {
      ++it;
      continue;
    }
    it->thread.join();
    it = connections_.erase(it);
  }
}

void CallSocket::Serve(Connection& connection) {
  // One more byte than allowed is never needed: the socket says how long a cut packet was.
  const std::unique_ptr<char[]> buffer(new char[kMaxCallPacketBytes]);
  while (!stopping_ && AnswerOne(connection.fd.get(), buffer.get())) {
  }
  connection.ended = true;
  WakeAcceptor();
}

// False when the connection is over.
bool CallSocket::AnswerOne(int fd, char* buffer) {
  const ssize_t bytes = recv(fd, buffer, kMaxCallPacketBytes, MSG_TRUNC);
  if (bytes < 0 && errno == EINTR) return true;
  if (bytes <= 0) return false;
  const size_t whole = static_cast<size_t>(bytes);
  const auto call = ParseCallPacket({buffer, std::min(whole, kMaxCallPacketBytes)}, whole);
  return Send(fd, Answer(call, [this, fd] { return stopping_ || HasHungUp(fd); }));
}

std::string CallSocket::AnswerStore(const CallPacket& call, std::function<bool()> cancelled) const {
  wire::StoreRequest request;
  wire::StoreResponse response;
  absl::Status status = Parse(call.message, request);
  if (!status.ok() || request.peer_sequence() == 0) {
    status = runner_.RunHere(
        methods::kStore, call.timeout, std::move(cancelled), [&](const CallContext& context) {
          return status.ok() ? calls_.Store(context, tenant_, request, response) : status;
        });
  } else {
    PeerStore store(node_, &request);
    status = runner_.RunHereAfter(
        methods::kStore, call.timeout, std::move(cancelled),
        [&](CallRunner::Resume resume) {
          return calls_.BeginStore(tenant_, request, store, std::move(resume));
        },
        [&](const CallContext& context) {
          return KvCacheCalls::EndStore(context, store, response);
        });
  }
  return ReplyPacket(status, status.ok() ? response.SerializeAsString() : std::string());
}

std::string CallSocket::Answer(const absl::StatusOr<CallPacket>& call,
                               std::function<bool()> cancelled) const {
  if (!call.ok()) return ReplyPacket(call.status(), {});
  // A method of KvCacheCalls on messages of their own.
  const auto run = [&](const CallRunner::Method& method, auto request, auto response,
                       const auto& perform) {
    const absl::Status status = runner_.RunHere(method, call->timeout, std::move(cancelled),
                                                [&](const CallContext& context) -> absl::Status {
                                                  FQ_RETURN_IF_ERROR(Parse(call->message, request));
                                                  return perform(context, request, response);
                                                });
    return ReplyPacket(status, status.ok() ? response.SerializeAsString() : std::string());
  };
  switch (call->kind) {
    case CallKind::kStore:
      return AnswerStore(*call, std::move(cancelled));
    case CallKind::kLookup:
      return run(methods::kLookup, wire::LookupRequest(), wire::LookupResponse(),
                 [&](const CallContext&, const auto& request, auto& response) {
                   return calls_.Lookup(tenant_, request, response);
                 });
    case CallKind::kLoad:
      return run(methods::kLoad, wire::LoadRequest(), wire::LoadResponse(),
                 [&](const CallContext& context, const auto& request, auto& response) {
                   return calls_.LoadIntoSegment(context, tenant_, request, response);
                 });
    case CallKind::kRelease:
      return run(methods::kRelease, wire::ReleaseRequest(), wire::ReleaseResponse(),
                 [&](const CallContext&, const auto& request, auto& response) {
                   return calls_.Release(tenant_, request, response);
                 });
  }
  return ReplyPacket(absl::InternalError("no such method"), {});
}

}  // namespace fq
