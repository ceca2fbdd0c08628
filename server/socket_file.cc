#include "server/socket_file.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace fq {
namespace {

absl::Status SystemError(const std::string& path, absl::string_view what) {
  return absl::UnavailableError(
      absl::StrCat(path, ": ", what, ": ", std::generic_category().message(errno)));
}

absl::Status MakeDirectories(const std::string& directory) {
  for (size_t end = directory.find('/', 1); end != std::string::npos;
       end = directory.find('/', end + 1)) {
    if (mkdir(directory.substr(0, end).c_str(), 0700) != 0 && errno != EEXIST) {
      return SystemError(directory.substr(0, end), "mkdir");
    }
  }
  return absl::OkStatus();
}

// gRPC's sockets are streams, the segment socket is of packets: ask for both.
bool SomebodyListens(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), std::min(path.size(), sizeof(address.sun_path) - 1));
  for (int type : {SOCK_STREAM, SOCK_SEQPACKET}) {
    OwnedFd fd(socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) return true;
    if (errno == EAGAIN) return true;  // its queue is full
  }
  return false;
}

}  // namespace

absl::Status PrepareSocketPath(const std::string& path) {
  FQ_RETURN_IF_ERROR(MakeDirectories(path));
  struct stat info {};
  if (lstat(path.c_str(), &info) != 0) {
    return errno == ENOENT ? absl::OkStatus() : SystemError(path, "stat");
  }
  if (!S_ISSOCK(info.st_mode)) {
    return absl::AlreadyExistsError(absl::StrCat(path, ": exists and is not a socket"));
  }
  if (SomebodyListens(path)) {
    return absl::AlreadyExistsError(absl::StrCat(path, ": another process listens on it"));
  }
  if (unlink(path.c_str()) != 0) return SystemError(path, "unlink");
  return absl::OkStatus();
}

absl::StatusOr<OwnedFd> ListenUnix(const std::string& path, int type, uint32_t mode) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " has ", path.size(), " bytes: at most ", sizeof(address.sun_path) - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  OwnedFd listener(socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (listener.get() < 0) return SystemError(path, "socket");
  if (bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    return SystemError(path, "bind");
  }
  if (chmod(path.c_str(), mode) != 0) return SystemError(path, "chmod");
  if (listen(listener.get(), SOMAXCONN) != 0) return SystemError(path, "listen");
  return listener;
}

bool MayUseSocket(int connection, uint32_t mode) {
  ucred peer{};
  socklen_t bytes = sizeof(peer);
  if (getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0) return false;
  return peer.uid == geteuid() || peer.uid == 0 || (mode & 022) != 0;
}

}  // namespace fq
