#include "server/connections/listen_tcp.h"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <memory>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace fq {
namespace {

absl::Status Refused(const HostPort& at, const std::string& reason) {
  return absl::UnavailableError(
      absl::StrCat("cannot listen on --listen = ", at.host, ":", at.port, ": ", reason));
}

void SetPort(sockaddr* address, int port) {
  const in_port_t number = htons(static_cast<uint16_t>(port));
  if (address->sa_family == AF_INET) reinterpret_cast<sockaddr_in*>(address)->sin_port = number;
  if (address->sa_family == AF_INET6) reinterpret_cast<sockaddr_in6*>(address)->sin6_port = number;
}

int PortOf(int socket) {
  sockaddr_storage address{};
  socklen_t bytes = sizeof(address);
  if (getsockname(socket, reinterpret_cast<sockaddr*>(&address), &bytes) != 0) return 0;
  return ntohs(address.ss_family == AF_INET ? reinterpret_cast<sockaddr_in&>(address).sin_port
                                            : reinterpret_cast<sockaddr_in6&>(address).sin6_port);
}

// -1 with errno when it cannot.
OwnedFd ListenOn(const addrinfo& address, bool wildcard) {
  OwnedFd fd(socket(address.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int on = 1, only_v6 = wildcard ? 0 : 1;
  if (fd.get() < 0 || setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0) {
    return OwnedFd(-1);
  }
  if (address.ai_family == AF_INET6 &&
      setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &only_v6, sizeof(only_v6)) != 0) {
    return OwnedFd(-1);
  }
  if (bind(fd.get(), address.ai_addr, address.ai_addrlen) != 0) return OwnedFd(-1);
  return listen(fd.get(), SOMAXCONN) == 0 ? std::move(fd) : OwnedFd(-1);
}

}  // namespace

absl::StatusOr<TcpListeners> ListenTcp(const HostPort& at) {
  addrinfo wanted{};
  wanted.ai_socktype = SOCK_STREAM;
  wanted.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  if (const int code = getaddrinfo(at.host.c_str(), nullptr, &wanted, &found); code != 0) {
    return Refused(at, gai_strerror(code));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> addresses(found, freeaddrinfo);
  TcpListeners result;
  result.port = at.port;
  int reason = EADDRNOTAVAIL;
  for (const addrinfo* address = found; address != nullptr; address = address->ai_next) {
    SetPort(address->ai_addr, result.port);
    OwnedFd fd = ListenOn(*address, at.host == "::");
    if (fd.get() < 0) {
      reason = errno;
      // A name may have an address that this host lacks, but a port in use is somebody else's.
      if (reason == EADDRINUSE) break;
      continue;
    }
    if (result.port == 0) result.port = PortOf(fd.get());
    result.sockets.push_back(std::move(fd));
    reason = 0;
  }
  if (reason == EADDRINUSE || result.sockets.empty()) {
    return Refused(at, std::generic_category().message(reason));
  }
  return result;
}

}  // namespace fq
