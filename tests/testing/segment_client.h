// The client's end of the segment socket, for tests that send packets of their own.
#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "server/segments.h"
#include "tests/testing/eventually.h"

namespace fq {

struct SegmentAnswer {
  uint32_t code = UINT32_MAX;  // no answer
  uint32_t id = 0;
  std::string text;
};

inline OwnedFd ConnectToSegments(const std::string& path) {
  OwnedFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  const timeval limit{kPatience.count(), 0};
  setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  sockaddr_un at{};
  at.sun_family = AF_UNIX;
  std::memcpy(at.sun_path, path.data(), path.size());
  EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&at), sizeof(at)), 0);
  return fd;
}

inline void SendPacket(const OwnedFd& peer, const std::string& packet,
                       const std::vector<int>& fds) {
  iovec data{const_cast<char*>(packet.data()), packet.size()};
  std::vector<char> control(CMSG_SPACE(sizeof(int) * fds.size()));
  msghdr header{};
  header.msg_iov = &data;
  header.msg_iovlen = 1;
  if (!fds.empty()) {
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    cmsghdr* c = CMSG_FIRSTHDR(&header);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(c), fds.data(), sizeof(int) * fds.size());
  }
  EXPECT_GE(sendmsg(peer.get(), &header, MSG_NOSIGNAL), 0);
}

inline SegmentAnswer ReceiveAnswer(const OwnedFd& peer) {
  char reply[4096];
  const ssize_t bytes = recv(peer.get(), reply, sizeof(reply), 0);
  SegmentAnswer answer;
  if (bytes < 8) return answer;
  std::memcpy(&answer.code, reply, 4);
  std::memcpy(&answer.id, reply + 4, 4);
  answer.text.assign(reply + 8, static_cast<size_t>(bytes) - 8);
  return answer;
}

inline SegmentAnswer AskSegments(const OwnedFd& peer, const std::string& packet,
                                 const std::vector<int>& fds) {
  SendPacket(peer, packet, fds);
  return ReceiveAnswer(peer);
}

// Packet of operation 1 or 2.
template <typename Session>
std::string SegmentPacket(const Session& session, uint32_t operation, uint32_t id, uint64_t bytes) {
  std::string packet(session.begin(), session.end());
  packet.append(reinterpret_cast<const char*>(&operation), 4);
  packet.append(reinterpret_cast<const char*>(&id), 4);
  packet.append(reinterpret_cast<const char*>(&bytes), 8);
  return packet;
}

}  // namespace fq
