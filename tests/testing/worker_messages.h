// What a test and its worker process (cuda_worker.h) say to one another over a socket pair.
#pragma once

#include <sys/socket.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/device.h"

namespace fq {

enum class WorkerVerb : uint32_t {
  kAllocate,   // kind, bytes -> allocation, handle; then SendDescriptor for kFileDescriptor
  kFree,       // allocation
  kWrite,      // allocation, offset, bytes, then the bytes
  kRead,       // allocation, offset, bytes -> the bytes behind the reply
  kEvent,      // -> handle
  kWriteLate,  // as kWrite
  kReadLate,   // as kRead, without the bytes
  kFinish,     // -> bytes, and those of the last kReadLate behind the reply
};

struct WorkerRequest {
  WorkerVerb verb = WorkerVerb::kFinish;
  ShareKind kind = ShareKind::kIpcHandle;
  uint64_t allocation = 0, offset = 0, bytes = 0;
};

struct WorkerReply {
  IpcHandle handle{};
  uint64_t allocation = 0, bytes = 0;
};

// False when the other side is gone.
inline bool SendAll(int socket, const void* data, size_t bytes) {
  const auto* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t sent = send(socket, at, bytes, MSG_NOSIGNAL);
    if (sent <= 0) return false;
    at += sent;
    bytes -= static_cast<size_t>(sent);
  }
  return true;
}

inline bool ReceiveAll(int socket, void* data, size_t bytes) {
  auto* at = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t got = recv(socket, at, bytes, 0);
    if (got <= 0) return false;
    at += got;
    bytes -= static_cast<size_t>(got);
  }
  return true;
}

inline msghdr MessageOf(iovec* one, char* control, size_t control_bytes) {
  msghdr message{};
  message.msg_iov = one;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = control_bytes;
  return message;
}

inline bool SendDescriptor(int socket, int fd) {
  char byte = 0;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  iovec one{&byte, 1};
  msghdr message = MessageOf(&one, control, sizeof(control));
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  return sendmsg(socket, &message, MSG_NOSIGNAL) == 1;
}

// -1 when none came.
inline int ReceiveDescriptor(int socket) {
  char byte = 0;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  iovec one{&byte, 1};
  msghdr message = MessageOf(&one, control, sizeof(control));
  if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1) return -1;
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  int fd = -1;
  if (header != nullptr) std::memcpy(&fd, CMSG_DATA(header), sizeof(fd));
  return fd;
}

}  // namespace fq
