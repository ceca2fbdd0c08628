#include "server/segment_socket.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/bad_field.h"
#include "kernels/base/status_macros.h"
#include "server/socket_file.h"

namespace fq {
namespace {

constexpr size_t kRequestBytes = 32;
// The kernel closes what exceeds them; one more than allowed, to see that there were too many.
constexpr size_t kMaxDescriptors = kMaxSharedAllocations + 1;
constexpr size_t kMaxConnections = 256;
constexpr int kLeavingPollMs = 1;
constexpr std::chrono::milliseconds kAcceptPause{10};  // when descriptors run out
enum Operation : uint32_t { kRegister = 1, kUnregister = 2, kRegisterDevice = 3 };

struct Packet {
  std::vector<std::byte> data;
  std::vector<OwnedFd> descriptors;
};

struct Request {
  RandomId session_id{};
  uint32_t operation = 0;
  uint32_t segment_id = 0;
  uint64_t segment_bytes = 0;
};

absl::Status SystemError(absl::string_view what, const std::string& path) {
  return absl::UnavailableError(
      absl::StrCat(path, ": ", what, ": ", std::generic_category().message(errno)));
}

void TakeDescriptors(msghdr& header, std::vector<OwnedFd>& descriptors) {
  for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    for (size_t at = CMSG_LEN(0); at + sizeof(int) <= c->cmsg_len; at += sizeof(int)) {
      int fd = -1;
      std::memcpy(&fd, reinterpret_cast<const std::byte*>(c) + at, sizeof(fd));
      descriptors.emplace_back(fd);
    }
  }
}

// Nothing when the peer has gone.
std::optional<Packet> Receive(int connection) {
  Packet packet;
  packet.data.resize(kMaxRegistrationBytes + 1);  // one more, to see a packet that is too long
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))];
  iovec data{packet.data.data(), packet.data.size()};
  msghdr header{};
  header.msg_iov = &data;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof(control);
  ssize_t bytes = recvmsg(connection, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (bytes <= 0) return std::nullopt;
  packet.data.resize(static_cast<size_t>(bytes));
  TakeDescriptors(header, packet.descriptors);
  return packet;
}

// 0 for a packet that is too short to say.
uint32_t OperationOf(const Packet& packet) {
  uint32_t operation = 0;
  if (packet.data.size() >= 20) std::memcpy(&operation, packet.data.data() + 16, 4);
  return operation;
}

RandomId SessionOf(const Packet& packet) {
  RandomId id{};
  std::memcpy(id.data(), packet.data.data(), id.size());
  return id;
}

absl::StatusOr<Request> Parse(const Packet& packet) {
  if (packet.data.size() != kRequestBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("packet of ", packet.data.size(),
                     packet.data.size() > kMaxRegistrationBytes ? " or more" : "",
                     " bytes: must have ", kRequestBytes));
  }
  Request request;
  request.session_id = SessionOf(packet);
  request.operation = OperationOf(packet);
  std::memcpy(&request.segment_id, packet.data.data() + 20, 4);
  std::memcpy(&request.segment_bytes, packet.data.data() + 24, 8);
  return request;
}

absl::Status CheckRequest(const Request& request, size_t descriptors) {
  if (request.operation != kRegister && request.operation != kUnregister) {
    return BadField("operation", request.operation,
                    "must be 1 (register), 2 (unregister) or 3 (register device memory)");
  }
  const bool registers = request.operation == kRegister;
  if (descriptors != (registers ? 1u : 0u)) {
    return BadField("descriptors", descriptors, registers ? "must be 1 to register" : "must be 0");
  }
  if (registers && request.segment_id != 0) {
    return BadField("segment id", request.segment_id, "must be 0 to register");
  }
  if (!registers && request.segment_bytes != 0) {
    return BadField("bytes", request.segment_bytes, "must be 0 to unregister");
  }
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> RegisterDevice(const SegmentSocket::Setup& setup, const Packet& packet) {
  std::vector<int> descriptors;
  for (const OwnedFd& fd : packet.descriptors) descriptors.push_back(fd.get());
  FQ_ASSIGN_OR_RETURN(const DeviceRegistration registration,
                      ParseDeviceRegistration(packet.data, descriptors));
  FQ_ASSIGN_OR_RETURN(auto session, setup.sessions->Find(SessionOf(packet)));
  if (setup.device == nullptr) {
    return absl::FailedPreconditionError("operation = 3: the node has no GPU (--device)");
  }
  FQ_ASSIGN_OR_RETURN(auto segment, DeviceSegment::Map(*setup.device, registration,
                                                       session->space->shape().layers()));
  return session->segments.Register(std::move(segment));
}

// The id of the segment that the request was about.
absl::StatusOr<uint32_t> Perform(const SegmentSocket::Setup& setup, const Packet& packet) {
  if (OperationOf(packet) == kRegisterDevice) return RegisterDevice(setup, packet);
  FQ_ASSIGN_OR_RETURN(Request request, Parse(packet));
  FQ_RETURN_IF_ERROR(CheckRequest(request, packet.descriptors.size()));
  FQ_ASSIGN_OR_RETURN(auto session, setup.sessions->Find(request.session_id));
  if (request.operation == kRegister) {
    return session->segments.Register(packet.descriptors[0], request.segment_bytes);
  }
  FQ_RETURN_IF_ERROR(session->segments.Unregister(request.segment_id));
  return request.segment_id;
}

// Of the segment of device memory that the packet asks to unregister, if any.
std::weak_ptr<const void> PresenceOf(const SegmentSocket::Setup& setup, const Packet& packet) {
  const absl::StatusOr<Request> request = Parse(packet);
  if (!request.ok() || request->operation != kUnregister) return {};
  const auto session = setup.sessions->Find(request->session_id);
  if (!session.ok()) return {};
  const auto segment = (*session)->segments.FindDevice(request->segment_id);
  return segment == nullptr ? std::weak_ptr<const void>() : segment->presence();
}

const char* OperationName(const Packet& packet) {
  switch (OperationOf(packet)) {
    case kRegister:
      return "register";
    case kUnregister:
      return "unregister";
    case kRegisterDevice:
      return "register-device";
    default:
      return "other";
  }
}

bool Reply(int connection, const absl::StatusOr<uint32_t>& result) {
  const uint32_t code = static_cast<uint32_t>(result.status().code());
  const uint32_t id = result.ok() ? *result : 0;
  std::string packet(8, '\0');
  std::memcpy(packet.data(), &code, 4);
  std::memcpy(packet.data() + 4, &id, 4);
  packet.append(result.status().message().data(), result.status().message().size());
  return send(connection, packet.data(), packet.size(), MSG_NOSIGNAL | MSG_DONTWAIT) ==
         static_cast<ssize_t>(packet.size());
}

}  // namespace

absl::StatusOr<std::unique_ptr<SegmentSocket>> SegmentSocket::Start(const Setup& setup) {
  OwnedFd stop(eventfd(0, EFD_CLOEXEC));
  if (stop.get() < 0) return SystemError("eventfd", setup.path);
  FQ_ASSIGN_OR_RETURN(OwnedFd listener, ListenUnix(setup.path, SOCK_SEQPACKET, setup.mode));
  return std::unique_ptr<SegmentSocket>(
      new SegmentSocket(setup, std::move(listener), std::move(stop)));
}

SegmentSocket::SegmentSocket(const Setup& setup, OwnedFd listener, OwnedFd stop)
    : setup_(setup), listener_(std::move(listener)), stop_(std::move(stop)) {
  thread_ = std::thread([this] { Serve(); });
}

SegmentSocket::~SegmentSocket() {
  const uint64_t one = 1;
  while (write(stop_.get(), &one, sizeof(one)) < 0 && errno == EINTR) {
  }
  thread_.join();
  unlink(setup_.path.c_str());
}

void SegmentSocket::Serve() {
  std::vector<pollfd> polled;
  for (;;) {
    polled = {{stop_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};
    int limit_ms = -1;
    for (const Connection& connection : connections_) {
      const bool leaving = connection.leaving_id != 0;
      polled.push_back({connection.fd.get(), static_cast<short>(leaving ? 0 : POLLIN), 0});
      if (leaving) limit_ms = kLeavingPollMs;
    }
    if (poll(polled.data(), polled.size(), limit_ms) < 0) continue;  // a signal
    if (polled[0].revents != 0) return;
    for (size_t i = connections_.size(); i-- > 0;) {
      Connection& connection = connections_[i];
      const bool goes_on = connection.leaving_id != 0
                               ? AnswerLeaving(connection)
                               : polled[i + 2].revents == 0 || Answer(connection);
      if (goes_on) continue;
      std::swap(connections_[i], connections_.back());
      connections_.pop_back();
    }
    if (polled[1].revents != 0) Accept();
  }
}

void SegmentSocket::Accept() {
  OwnedFd connection(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (connection.get() < 0) {
    if (errno == EMFILE || errno == ENFILE) std::this_thread::sleep_for(kAcceptPause);
    return;
  }
  if (connections_.size() >= kMaxConnections) return;
  if (!MayUseSocket(connection.get(), setup_.mode)) return;
  connections_.push_back({std::move(connection), {}, 0});
}

// False when the connection is over, as AnswerLeaving.
bool SegmentSocket::Answer(Connection& connection) {
  std::optional<Packet> packet = Receive(connection.fd.get());
  if (!packet.has_value()) return false;
  const std::weak_ptr<const void> leaving = PresenceOf(setup_, *packet);
  absl::StatusOr<uint32_t> result = Perform(setup_, *packet);
  setup_.metrics->Add(Metric::kSegmentRequests,
                      {OperationName(*packet), result.ok() ? "ok" : "refused"}, 1);
  if (!result.ok() || leaving.expired()) return Reply(connection.fd.get(), result);
  connection.leaving = leaving;
  connection.leaving_id = *result;
  return true;
}

bool SegmentSocket::AnswerLeaving(Connection& connection) {
  if (!connection.leaving.expired()) return true;
  return Reply(connection.fd.get(), std::exchange(connection.leaving_id, 0));
}

}  // namespace fq
