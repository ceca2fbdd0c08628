#include "client/cpp/call_socket.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cpp/node_link.h"
#include "client/cpp/retry_after.h"
#include "kernels/base/status_macros.h"

namespace fq::client {
namespace {

constexpr uint32_t kVersion = 1;
constexpr size_t kMaxKept = 8;
constexpr size_t kMostBytes = 1 << 20;  // of a packet, whatever the node says

// Packets of the protocol; little-endian hosts only, as the codec is.
struct RequestHead {
  CallKind kind;
  uint32_t zero;
  uint64_t timeout_us;
};
struct ReplyHead {  // of the greeting: version, bytes of the longest packet
  uint32_t code;
  uint32_t retry_after_ms;
};
static_assert(sizeof(RequestHead) == 16 && sizeof(ReplyHead) == 8);

absl::Status Unavailable(const std::string& path, const char* what) {
  return absl::UnavailableError(
      absl::StrCat("call socket ", path, ": ", what, ": ", std::generic_category().message(errno)));
}

// Waits for a packet; gives its length.
absl::StatusOr<size_t> Receive(const std::string& path, int fd, absl::Span<char> room,
                               absl::Time give_up) {
  for (;;) {
    const ssize_t bytes = recv(fd, room.data(), room.size(), MSG_DONTWAIT);
    if (bytes > 0) return static_cast<size_t>(bytes);
    if (bytes == 0) {
      errno = ECONNRESET;
      return Unavailable(path, "recv");
    }
    if (errno != EAGAIN && errno != EINTR) return Unavailable(path, "recv");
    const absl::Duration left = give_up - absl::Now();
    if (left <= absl::ZeroDuration()) {
      return absl::DeadlineExceededError("the node did not answer in time");
    }
    const timespec limit = absl::ToTimespec(std::min(left, absl::Seconds(60)));
    pollfd waiting{fd, POLLIN, 0};
    if (ppoll(&waiting, 1, &limit, nullptr) < 0 && errno != EINTR) return Unavailable(path, "poll");
  }
}

absl::Status StatusOf(const ReplyHead& head, absl::string_view text) {
  absl::Status status(static_cast<absl::StatusCode>(head.code), text);
  if (head.retry_after_ms != 0) {
    status.SetPayload(kRetryAfterPayload, absl::Cord(absl::StrCat(head.retry_after_ms)));
  }
  return status;
}

}  // namespace

std::optional<absl::StatusOr<std::string>> CallSocket::Call(CallKind kind,
                                                            const std::string& message,
                                                            absl::Time deadline) {
  const absl::Time give_up = deadline + kTimerSlack;
  absl::StatusOr<Connection> connection = Take(give_up);
  if (absl::IsDeadlineExceeded(connection.status())) return connection.status();
  if (!connection.ok()) return std::nullopt;
  const int64_t left_us = std::max<int64_t>(1, absl::ToInt64Microseconds(deadline - absl::Now()));
  const RequestHead head{kind, 0, static_cast<uint64_t>(left_us)};
  std::string packet(reinterpret_cast<const char*>(&head), sizeof(head));
  packet += message;
  if (packet.size() > connection->max_bytes) {
    GiveBack(*std::move(connection));
    return std::nullopt;
  }
  // It does not block: the connection has no other packet on its way.
  const int fd = connection->fd.get();
  if (send(fd, packet.data(), packet.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(packet.size())) {
    return std::nullopt;  // the node hung up while it was idle
  }
  const absl::Span<char> room(connection->room.get(), connection->max_bytes);
  const auto bytes = Receive(path_, fd, room, give_up);
  if (!bytes.ok()) return bytes.status();
  ReplyHead reply{};
  if (*bytes < sizeof(reply)) return absl::UnavailableError("call socket: not a reply");
  std::memcpy(&reply, room.data(), sizeof(reply));
  std::string rest(room.data() + sizeof(reply), *bytes - sizeof(reply));
  GiveBack(*std::move(connection));
  if (reply.code != 0) return StatusOf(reply, rest);
  return rest;
}

absl::StatusOr<CallSocket::Connection> CallSocket::Take(absl::Time give_up) {
  {
    absl::MutexLock lock(&mu_);
    if (!idle_.empty()) {
      Connection connection = std::move(idle_.back());
      idle_.pop_back();
      return connection;
    }
  }
  return Connect(give_up);
}

absl::StatusOr<CallSocket::Connection> CallSocket::Connect(absl::Time give_up) const {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path_.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("call socket ", path_, ": ", path_.size(),
                                                   " bytes, at most ",
                                                   sizeof(address.sun_path) - 1));
  }
  std::memcpy(address.sun_path, path_.data(), path_.size());
  OwnedFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd.get() < 0 ||
      connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    return Unavailable(path_, "connect");
  }
  ReplyHead greeting{};
  const absl::Span<char> room(reinterpret_cast<char*>(&greeting), sizeof(greeting));
  FQ_ASSIGN_OR_RETURN(const size_t bytes, Receive(path_, fd.get(), room, give_up));
  if (bytes != sizeof(greeting) || greeting.code != kVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("call socket ", path_, ": version ", greeting.code, ", ours is ", kVersion));
  }
  const size_t max_bytes = std::min<size_t>(greeting.retry_after_ms, kMostBytes);
  return Connection{std::move(fd), max_bytes, std::unique_ptr<char[]>(new char[max_bytes])};
}

void CallSocket::GiveBack(Connection connection) {
  absl::MutexLock lock(&mu_);
  if (idle_.size() < kMaxKept) idle_.push_back(std::move(connection));
}

}  // namespace fq::client
