#include "server/segments.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace fq {
namespace {

absl::Status CheckSeals(int fd) {
  int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0) return absl::InvalidArgumentError("descriptor: not a memfd (it has no seals)");
  if ((seals & F_SEAL_SHRINK) == 0) {
    return absl::InvalidArgumentError("descriptor: not sealed: F_SEAL_SHRINK is missing");
  }
  if ((seals & F_SEAL_GROW) == 0) {
    return absl::InvalidArgumentError("descriptor: not sealed: F_SEAL_GROW is missing");
  }
  if ((seals & F_SEAL_WRITE) != 0) {
    return absl::InvalidArgumentError(
        "descriptor: sealed with F_SEAL_WRITE: loads could not write");
  }
  return absl::OkStatus();
}

absl::Status CheckSize(int fd, uint64_t bytes) {
  struct stat info {};
  if (fstat(fd, &info) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("descriptor: fstat: ", std::generic_category().message(errno)));
  }
  if (bytes != 0 && static_cast<uint64_t>(info.st_size) == bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("bytes = ", bytes, ": the descriptor has ", info.st_size));
}

void EndLink(const PeerSegment& segment, const char* why) {
  segment.link->Break(PeerLinkEnd::kClosed, why);
}

}  // namespace

OwnedFd& OwnedFd::operator=(OwnedFd&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

OwnedFd::~OwnedFd() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<std::shared_ptr<const Segment>> Segment::Map(const OwnedFd& fd, uint64_t bytes) {
  FQ_RETURN_IF_ERROR(CheckSeals(fd.get()));  // before the size: sealed, it can no longer change
  FQ_RETURN_IF_ERROR(CheckSize(fd.get(), bytes));
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (at == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("bytes = ", bytes, ": mmap: ", std::generic_category().message(errno)));
  }
  auto memory = absl::MakeSpan(static_cast<std::byte*>(at), static_cast<size_t>(bytes));
  return std::shared_ptr<const Segment>(new Segment(memory));
}

Segment::~Segment() { munmap(memory_.data(), memory_.size()); }

absl::StatusOr<uint32_t> SegmentTable::Register(const OwnedFd& fd, uint64_t bytes) {
  if (bytes > limits_.max_segment_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat("max-segment-bytes: the segment has ", bytes,
                                                     ", at most ", limits_.max_segment_bytes));
  }
  absl::MutexLock lock(&mutex_);
  FQ_RETURN_IF_ERROR(CheckRoom());
  FQ_ASSIGN_OR_RETURN(auto segment, Segment::Map(fd, bytes));
  segments_.emplace(++last_id_, std::move(segment));
  return last_id_;
}

absl::StatusOr<uint32_t> SegmentTable::Register(std::shared_ptr<const DeviceSegment> segment) {
  absl::MutexLock lock(&mutex_);
  FQ_RETURN_IF_ERROR(CheckRoom());
  segments_.emplace(++last_id_, std::move(segment));
  return last_id_;
}

absl::StatusOr<uint32_t> SegmentTable::Register(const PeerSegment& segment) {
  absl::MutexLock lock(&mutex_);
  FQ_RETURN_IF_ERROR(CheckRoom());
  segments_.emplace(++last_id_, segment);
  return last_id_;
}

absl::Status SegmentTable::CheckRoom() const {
  if (closed_) return absl::UnauthenticatedError("session_id: the session has ended");
  if (segments_.size() < limits_.max_segments) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "max-segments: the session has ", segments_.size(), ", at most ", limits_.max_segments));
}

absl::Status SegmentTable::Unregister(uint32_t id) {
  const AnySegment segment = FindAny(id);  // unmapped after the lock
  if (const auto* peer = std::get_if<PeerSegment>(&segment)) EndLink(*peer, "it was closed");
  absl::MutexLock lock(&mutex_);
  if (segments_.erase(id) == 1) return absl::OkStatus();
  return absl::NotFoundError(
      absl::StrCat("segment_id = ", id, ": the session has none of that id"));
}

SegmentTable::AnySegment SegmentTable::FindAny(uint32_t id) const {
  absl::MutexLock lock(&mutex_);
  auto it = segments_.find(id);
  return it == segments_.end() ? AnySegment() : it->second;
}

std::shared_ptr<const Segment> SegmentTable::Find(uint32_t id) const {
  const AnySegment segment = FindAny(id);
  const auto* host = std::get_if<std::shared_ptr<const Segment>>(&segment);
  return host == nullptr ? nullptr : *host;
}

std::shared_ptr<const DeviceSegment> SegmentTable::FindDevice(uint32_t id) const {
  const AnySegment segment = FindAny(id);
  const auto* device = std::get_if<std::shared_ptr<const DeviceSegment>>(&segment);
  return device == nullptr ? nullptr : *device;
}

PeerSegment SegmentTable::FindPeer(uint32_t id) const {
  const AnySegment segment = FindAny(id);
  const auto* peer = std::get_if<PeerSegment>(&segment);
  return peer == nullptr ? PeerSegment() : *peer;
}

void SegmentTable::Close() {
  std::map<uint32_t, AnySegment> all;
  {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
    all.swap(segments_);
  }
  for (const auto& [id, segment] : all) {
    if (const auto* peer = std::get_if<PeerSegment>(&segment)) EndLink(*peer, "the session ended");
  }
}

size_t SegmentTable::device_segments(ShareKind kind) const {
  absl::MutexLock lock(&mutex_);
  size_t count = 0;
  for (const auto& [id, segment] : segments_) {
    const auto* device = std::get_if<std::shared_ptr<const DeviceSegment>>(&segment);
    if (device != nullptr && (*device)->share_kind() == kind) ++count;
  }
  return count;
}

size_t SegmentTable::size() const {
  absl::MutexLock lock(&mutex_);
  return segments_.size();
}

}  // namespace fq
