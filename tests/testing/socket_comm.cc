#include "tests/testing/socket_comm.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "tests/testing/guarded_memory.h"

namespace fq {
namespace {

constexpr uint8_t kReceived = 1;

absl::Status Failed(const char* what) {
  return absl::UnavailableError(absl::StrCat("socket: ", what, ": ", std::strerror(errno)));
}

sockaddr_un AddressOf(const PeerId& id) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, id.data(), sizeof(address.sun_path) - 1);
  return address;
}

// Bytes of one operation on their way, sent or compared and received piece by piece.
class Transfer {
 public:
  explicit Transfer(absl::Span<const PeerRegion> regions) {
    Header(static_cast<uint32_t>(regions.size()));
    for (const PeerRegion& region : regions) {
      Header(region.bytes);
      parts_.push_back({region.data, {}, region.bytes});
    }
  }

  bool done() const { return part_ == parts_.size(); }

  // Moves what goes now.
  absl::Status Move(int fd, PeerDirection direction) {
    while (!done()) {
      Part& part = parts_[part_];
      const ssize_t moved = direction == PeerDirection::kSend ? Send(fd, part) : Receive(fd, part);
      if (moved < 0 && (errno == EAGAIN || errno == EINTR)) return absl::OkStatus();
      if (moved < 0) return Failed("transfer");
      if (moved == 0 && part.bytes > at_) return absl::UnavailableError("socket: closed");
      at_ += static_cast<uint64_t>(moved);
      if (at_ < part.bytes) continue;
      if (part.memory == nullptr && part.text != received_ &&
          direction == PeerDirection::kReceive) {
        return absl::UnavailableError("socket: the other side's operation has another shape");
      }
      received_.clear();
      at_ = 0;
      ++part_;
    }
    return absl::OkStatus();
  }

 private:
  struct Part {
    std::byte* memory = nullptr;  // null: `text`
    std::string text;
    uint64_t bytes = 0;
  };

  template <typename T>
  void Header(T value) {
    parts_.push_back({nullptr, std::string(reinterpret_cast<const char*>(&value), sizeof(value)),
                      sizeof(value)});
  }
  ssize_t Send(int fd, const Part& part) const {
    const void* from = part.memory == nullptr ? static_cast<const void*>(part.text.data() + at_)
                                              : HostAddress(part.memory, part.bytes) + at_;
    return send(fd, from, part.bytes - at_, MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  ssize_t Receive(int fd, const Part& part) {
    received_.resize(part.memory == nullptr ? part.bytes : 0);
    void* to = part.memory == nullptr ? static_cast<void*>(received_.data() + at_)
                                      : HostAddress(part.memory, part.bytes) + at_;
    return recv(fd, to, part.bytes - at_, MSG_DONTWAIT);
  }

  std::vector<Part> parts_;
  size_t part_ = 0;
  uint64_t at_ = 0;  // in it
  std::string received_;
};

class SocketComm final : public PeerComm {
 public:
  // Owns the descriptors; `listener` is -1 on the side that has connected.
  SocketComm(int listener, int connection, PeerDirection direction, std::string path)
      : direction_(direction), path_(std::move(path)), listener_(listener), fd_(connection) {}
  ~SocketComm() override { Abort(); }

  absl::StatusOr<bool> Ready() override {
    if (fd_ < 0) {
      fd_ = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd_ < 0 && errno != EAGAIN && errno != EINTR) return Failed("accept");
    }
    return fd_ >= 0;
  }

  absl::Status Start(absl::Span<const PeerRegions* const> operations) override {
    for (const PeerRegions* regions : operations) transfers_.emplace_back(*regions);
    return absl::OkStatus();
  }

  absl::StatusOr<uint64_t> Completed() override {
    while (!transfers_.empty()) {
      FQ_RETURN_IF_ERROR(transfers_.front().Move(fd_, direction_));
      if (!transfers_.front().done()) break;
      uint8_t answer = kReceived;
      const ssize_t moved = direction_ == PeerDirection::kSend
                                ? recv(fd_, &answer, 1, MSG_DONTWAIT)
                                : send(fd_, &answer, 1, MSG_NOSIGNAL);
      if (moved == 0) return absl::UnavailableError("socket: closed");
      if (moved < 0 && errno != EAGAIN && errno != EINTR) return Failed("answer");
      if (moved < 0) break;
      transfers_.pop_front();
      ++completed_;
    }
    return completed_;
  }

  void Abort() override {
    for (int* fd : {&listener_, &fd_}) {
      if (*fd >= 0) close(std::exchange(*fd, -1));
    }
    if (!path_.empty()) unlink(path_.c_str());
    transfers_.clear();
  }

 private:
  const PeerDirection direction_;
  const std::string path_;  // of the listener's file
  int listener_, fd_;
  std::deque<Transfer> transfers_;
  uint64_t completed_ = 0;
};

}  // namespace

SocketTransport::SocketTransport(std::string folder) : folder_(std::move(folder)) {}

absl::StatusOr<PeerId> SocketTransport::MakeId() {
  const std::string path = absl::StrCat(folder_, "/peer", ++ids_);
  PeerId id{};
  if (path.size() >= sizeof(sockaddr_un::sun_path)) return absl::InvalidArgumentError(path);
  std::memcpy(id.data(), path.data(), path.size());
  return id;
}

absl::StatusOr<std::unique_ptr<PeerComm>> SocketTransport::Join(const PeerId& id,
                                                                PeerDirection direction) {
  const sockaddr_un address = AddressOf(id);
  const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (listener < 0) return Failed("socket");
  auto comm = std::make_unique<SocketComm>(listener, -1, direction, address.sun_path);
  unlink(address.sun_path);  // of a node that was killed
  if (bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      listen(listener, 1) != 0) {
    return Failed("listen");
  }
  return comm;
}

absl::StatusOr<std::unique_ptr<PeerComm>> SocketTransport::JoinOther(const PeerId& id,
                                                                     PeerDirection direction) {
  return ConnectSocketComm(id, direction);
}

absl::StatusOr<std::unique_ptr<PeerComm>> ConnectSocketComm(const PeerId& id,
                                                            PeerDirection direction) {
  const sockaddr_un address = AddressOf(id);
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return Failed("socket");
  auto comm = std::make_unique<SocketComm>(-1, fd, direction, "");
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return Failed("connect");
  }
  return comm;
}

}  // namespace fq
