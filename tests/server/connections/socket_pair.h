// Two ends of a connection for tests: non-blocking Unix sockets.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <chrono>
#include <string>
#include <utility>

#include "server/segments.h"
#include "tests/testing/eventually.h"

namespace fq {

inline constexpr int kPatienceMs = static_cast<int>(std::chrono::milliseconds(kPatience).count());

inline std::pair<OwnedFd, OwnedFd> SocketPair() {
  int fds[2] = {-1, -1};
  EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
  return {OwnedFd(fds[0]), OwnedFd(fds[1])};
}

inline void SendAll(const OwnedFd& to, const std::string& bytes) {
  EXPECT_EQ(send(to.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(bytes.size()));
}

// What comes until `bytes` are there, the other side ends, or it is silent for too long.
inline std::string Receive(const OwnedFd& from, size_t bytes) {
  std::string received;
  while (received.size() < bytes) {
    pollfd polled{from.get(), POLLIN, 0};
    if (poll(&polled, 1, kPatienceMs) != 1) break;
    char part[65536];
    const ssize_t n = recv(from.get(), part, std::min(sizeof(part), bytes - received.size()), 0);
    if (n <= 0) break;
    received.append(part, static_cast<size_t>(n));
  }
  return received;
}

// Whether `bytes` come before the other side ends or is silent for too long.
inline bool Receives(const OwnedFd& from, const std::string& bytes) {
  std::string received;
  while (received.find(bytes) == std::string::npos) {
    const std::string next = Receive(from, 1);
    if (next.empty()) return false;
    received += next;
  }
  return true;
}

// True when the other side hangs up in time; what it sends before is dropped.
inline bool HangsUp(const OwnedFd& fd) {
  for (;;) {
    pollfd polled{fd.get(), POLLIN, 0};
    char part[4096];
    if (poll(&polled, 1, kPatienceMs) != 1) return false;
    if (recv(fd.get(), part, sizeof(part), 0) <= 0) return true;
  }
}

inline const std::string kHello =
    std::string("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") + std::string("\0\0\0\4\0\0\0\0\0", 9);
inline const std::string kPing = std::string("\0\0\x8\6\0\0\0\0\0", 9) + std::string(8, 'p');
inline const std::string kPong = std::string("\0\0\x8\6\1\0\0\0\0", 9) + std::string(8, 'p');
inline const std::string kCall =  // HEADERS of one byte, END_HEADERS, stream 1
    std::string("\0\0\1\1\4\0\0\0\1", 9) + "\x82";

}  // namespace fq
