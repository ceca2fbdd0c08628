#include "server/connections/open_requests.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace fq {

OpenRequests::~OpenRequests() { Give(held_); }

absl::Status OpenRequests::OnPeerFrame(const FrameHeader& frame) {
  if (frame.type == FrameHeader::kResetStream) Forget(frame.stream);
  if (frame.type == FrameHeader::kHeaders) streams_.try_emplace(frame.stream, 0);
  if (frame.type != FrameHeader::kData || frame.length == 0) return absl::OkStatus();
  auto open = streams_.find(frame.stream);
  if (open == streams_.end()) return absl::OkStatus();  // answered meanwhile: gRPC drops it
  open->second += frame.length;
  Add(frame.length);
  const uint64_t holders = std::max<uint64_t>(1, room_->holders_), all = room_->held_;
  if (all <= room_->bytes_ || held_ <= room_->bytes_ / holders) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "requests that are not answered have ", all, " bytes, ", held_,
      " of them from this connection, one of ", holders, ": max-message-bytes is ", room_->bytes_));
}

void OpenRequests::OnNodeBytes(absl::Span<const std::byte> bytes) {
  while (!bytes.empty()) {
    if (payload_left_ == 0) {
      const size_t part = std::min(header_.size() - header_bytes_, bytes.size());
      std::memcpy(header_.data() + header_bytes_, bytes.data(), part);
      header_bytes_ += part;
      bytes.remove_prefix(part);
      if (header_bytes_ < header_.size()) return;
      header_bytes_ = 0;
      const FrameHeader frame = FrameHeader::Parse(header_.data());
      payload_left_ = frame.length;
      const bool may_end = frame.type == FrameHeader::kHeaders || frame.type == FrameHeader::kData;
      if (frame.type == FrameHeader::kResetStream ||
          (may_end && frame.Has(FrameHeader::kEndStream))) {
        Forget(frame.stream);
      }
    }
    const size_t part = std::min<size_t>(payload_left_, bytes.size());
    bytes.remove_prefix(part);
    payload_left_ -= static_cast<uint32_t>(part);
  }
}

void OpenRequests::Add(uint64_t bytes) {
  if (held_ == 0) ++room_->holders_;
  held_ += bytes;
  room_->held_ += bytes;
}

void OpenRequests::Forget(uint32_t stream) {
  auto open = streams_.find(stream);
  if (open == streams_.end()) return;
  Give(open->second);
  streams_.erase(open);
}

void OpenRequests::Give(uint64_t bytes) {
  if (bytes == 0) return;
  held_ -= bytes;
  room_->held_ -= bytes;
  if (held_ == 0) --room_->holders_;
}

}  // namespace fq
