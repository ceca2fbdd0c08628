#include "client/cpp/segment_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/base/status_macros.h"

namespace fq::client {
namespace {

constexpr uint32_t kRegister = 1, kUnregister = 2;
constexpr size_t kReplyHeaderBytes = 8;
constexpr size_t kReplyBytesMax = 4096;

// Packet of the protocol; little-endian hosts only, as the codec is.
struct Request {
  SessionId session_id{};
  uint32_t operation = 0;
  uint32_t segment_id = 0;
  uint64_t bytes = 0;
};
static_assert(sizeof(Request) == 32);
static_assert(offsetof(Request, operation) == 16 && offsetof(Request, bytes) == 24);

absl::Status Unavailable(const SegmentDoor& door, const char* what) {
  return absl::UnavailableError(absl::StrCat("segment socket ", door.socket_path, ": ", what, ": ",
                                             std::generic_category().message(errno)));
}

absl::Status WaitFor(const SegmentDoor& door, int fd, short events, absl::Time deadline) {
  while (true) {
    const int64_t left_ms = std::max<int64_t>(0, absl::ToInt64Milliseconds(deadline - absl::Now()));
    pollfd waiting{fd, events, 0};
    const int ready = poll(&waiting, 1, static_cast<int>(std::min<int64_t>(left_ms, 60'000)));
    if (ready > 0) return absl::OkStatus();
    if (ready < 0 && errno != EINTR) return Unavailable(door, "poll");
    if (absl::Now() < deadline) continue;
    return absl::DeadlineExceededError(
        absl::StrCat("segment socket ", door.socket_path, ": no answer in time"));
  }
}

absl::StatusOr<OwnedFd> Connect(const SegmentDoor& door, absl::Time deadline) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (door.socket_path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("segment socket ", door.socket_path, ": ",
                                                   door.socket_path.size(), " bytes, at most ",
                                                   sizeof(address.sun_path) - 1));
  }
  std::memcpy(address.sun_path, door.socket_path.data(), door.socket_path.size());
  OwnedFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd.get() < 0) return Unavailable(door, "socket");
  // A full backlog says EAGAIN on Unix sockets: there is nothing to wait on but time.
  while (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    if (errno != EAGAIN && errno != EINTR) return Unavailable(door, "connect");
    if (absl::Now() >= deadline) return absl::DeadlineExceededError("segment socket: backlog full");
    absl::SleepFor(absl::Milliseconds(1));
  }
  return fd;
}

absl::Status Send(const SegmentDoor& door, int fd, Request request, const OwnedFd* memfd) {
  iovec packet{&request, sizeof(request)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &packet;
  message.msg_iovlen = 1;
  if (memfd != nullptr) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    const int descriptor = memfd->get();
    std::memcpy(CMSG_DATA(header), &descriptor, sizeof(descriptor));
  }
  if (sendmsg(fd, &message, MSG_NOSIGNAL) != sizeof(request)) return Unavailable(door, "sendmsg");
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> Receive(const SegmentDoor& door, int fd) {
  char reply[kReplyBytesMax];
  const ssize_t bytes = recv(fd, reply, sizeof(reply), 0);
  if (bytes < 0) return Unavailable(door, "recv");
  if (bytes < static_cast<ssize_t>(kReplyHeaderBytes)) {
    return absl::UnavailableError(absl::StrCat("segment socket ", door.socket_path, ": a reply of ",
                                               bytes, " bytes, at least ", kReplyHeaderBytes));
  }
  uint32_t code = 0, segment_id = 0;
  std::memcpy(&code, reply, sizeof(code));
  std::memcpy(&segment_id, reply + sizeof(code), sizeof(segment_id));
  if (code == 0) return segment_id;
  return absl::Status(static_cast<absl::StatusCode>(code),
                      absl::string_view(reply + kReplyHeaderBytes, bytes - kReplyHeaderBytes));
}

absl::StatusOr<uint32_t> Exchange(const SegmentDoor& door, const Request& request,
                                  const OwnedFd* memfd, absl::Time deadline) {
  FQ_ASSIGN_OR_RETURN(OwnedFd fd, Connect(door, deadline));
  FQ_RETURN_IF_ERROR(WaitFor(door, fd.get(), POLLOUT, deadline));
  FQ_RETURN_IF_ERROR(Send(door, fd.get(), request, memfd));
  FQ_RETURN_IF_ERROR(WaitFor(door, fd.get(), POLLIN, deadline));
  return Receive(door, fd.get());
}

}  // namespace

absl::StatusOr<uint32_t> RegisterSegment(const SegmentDoor& door, const OwnedFd& memfd,
                                         uint64_t bytes, absl::Time deadline) {
  return Exchange(door, {door.session_id, kRegister, 0, bytes}, &memfd, deadline);
}

absl::Status UnregisterSegment(const SegmentDoor& door, uint32_t segment_id, absl::Time deadline) {
  return Exchange(door, {door.session_id, kUnregister, segment_id, 0}, nullptr, deadline).status();
}

}  // namespace fq::client
