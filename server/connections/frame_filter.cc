#include "server/connections/frame_filter.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/base/status_macros.h"

namespace fq {
namespace {

constexpr absl::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
constexpr uint32_t kCrumbBytes = 256;  // DATA below it that does not end its stream is a crumb

}  // namespace

FrameFilter::FrameFilter(OpenRequests* requests, const FrameLimits& limits)
    : requests_(requests),
      limits_(limits),
      controls_(limits.control_burst, limits.controls_per_second),
      resets_(limits.reset_burst, limits.resets_per_second),
      windows_(limits.window_burst, limits.windows_per_second),
      crumbs_(limits.crumb_burst, limits.crumbs_per_second) {}

absl::StatusOr<FrameVerdict> FrameFilter::Check(absl::Span<const std::byte> bytes,
                                                MonotonicTime now) {
  if (bytes.empty()) return FrameVerdict{};
  FQ_RETURN_IF_ERROR(CheckPreface(bytes));
  size_t at = 0;
  if (!introduced_) {
    const size_t missing = kPreface.size() - preface_seen_;
    at = std::min(missing, bytes.size());
    preface_seen_ += at;
    if (at < missing) return FrameVerdict{at};
  }
  while (at < bytes.size()) {
    if (payload_left_ == 0) {
      if (bytes.size() - at < FrameHeader::kBytes) break;
      const FrameHeader frame = FrameHeader::Parse(&bytes[at]);
      FQ_ASSIGN_OR_RETURN(Pace pace, Admit(frame, now));
      if (pace == Pace::kLater) return FrameVerdict{at, true};
      at += FrameHeader::kBytes;
      payload_left_ = frame.length;
    }
    const uint32_t part = static_cast<uint32_t>(std::min<size_t>(payload_left_, bytes.size() - at));
    at += part;
    payload_left_ -= part;
  }
  return FrameVerdict{at};
}

absl::Status FrameFilter::CheckPreface(absl::Span<const std::byte> bytes) {
  const size_t part = std::min(kPreface.size() - preface_seen_, bytes.size());
  if (std::memcmp(bytes.data(), kPreface.data() + preface_seen_, part) == 0) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError("not HTTP/2: the connection preface differs");
}

absl::StatusOr<FrameFilter::Pace> FrameFilter::Admit(const FrameHeader& frame, MonotonicTime now) {
  FQ_RETURN_IF_ERROR(CheckOrder(frame));
  if (frame.type != FrameHeader::kData && frame.length > limits_.max_control_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat("frame of type ", frame.type, " has ",
                                                     frame.length, " bytes: at most ",
                                                     limits_.max_control_bytes));
  }
  FQ_ASSIGN_OR_RETURN(Pace pace, CheckPace(frame, now));
  if (pace == Pace::kLater) return pace;
  FQ_RETURN_IF_ERROR(CheckHeaderBlock(frame));
  FQ_RETURN_IF_ERROR(requests_->OnPeerFrame(frame));
  introduced_ = true;
  if (frame.type == FrameHeader::kSettings && frame.Has(FrameHeader::kAck)) acknowledged_ = true;
  return pace;
}

absl::Status FrameFilter::CheckOrder(const FrameHeader& frame) const {
  if (!introduced_ && (frame.type != FrameHeader::kSettings || frame.Has(FrameHeader::kAck))) {
    return absl::InvalidArgumentError(absl::StrCat(
        "first frame has type ", frame.type, ": must be SETTINGS (", FrameHeader::kSettings, ")"));
  }
  if (in_header_block_ != (frame.type == FrameHeader::kContinuation)) {
    return absl::InvalidArgumentError(absl::StrCat("frame of type ", frame.type,
                                                   in_header_block_ ? " inside" : " outside",
                                                   " a header block"));
  }
  if (frame.type == FrameHeader::kSettings && frame.Has(FrameHeader::kAck) && !greeted_) {
    return absl::InvalidArgumentError("settings acknowledged before they were sent");
  }
  return absl::OkStatus();
}

absl::Status FrameFilter::CheckHeaderBlock(const FrameHeader& frame) {
  if (frame.type != FrameHeader::kHeaders && frame.type != FrameHeader::kContinuation)
    return absl::OkStatus();
  if (frame.type == FrameHeader::kHeaders) {
    header_block_ = 0;
    if (!acknowledged_ && ++requests_before_ack_ > limits_.max_requests_before_ack) {
      return absl::ResourceExhaustedError(absl::StrCat(
          requests_before_ack_, " requests before the settings were acknowledged: ", "at most ",
          limits_.max_requests_before_ack));
    }
  }
  in_header_block_ = !frame.Has(FrameHeader::kEndHeaders);
  if (!in_header_block_) has_asked_ = true;
  // The frame's own header counts too, or empty CONTINUATIONs could go on for ever.
  header_block_ += frame.length + static_cast<uint32_t>(FrameHeader::kBytes);
  if (header_block_ <= limits_.max_header_block_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "header block of ", header_block_, " bytes: at most ", limits_.max_header_block_bytes));
}

absl::StatusOr<FrameFilter::Pace> FrameFilter::CheckPace(const FrameHeader& frame,
                                                         MonotonicTime now) {
  switch (frame.type) {
    case FrameHeader::kHeaders:
    case FrameHeader::kContinuation:
      return Pace::kNow;
    case FrameHeader::kWindowUpdate:
      return windows_.Take(now) ? Pace::kNow : Pace::kLater;
    case FrameHeader::kData:
      if (frame.length >= kCrumbBytes || frame.Has(FrameHeader::kEndStream)) return Pace::kNow;
      return crumbs_.Take(now) ? Pace::kNow : Pace::kLater;
    case FrameHeader::kResetStream:
      return resets_.Take(now) ? Pace::kNow : Pace::kLater;
    default:
      if (controls_.Take(now)) return Pace::kNow;
      return absl::ResourceExhaustedError(absl::StrCat(
          "flood of control frames, the last of type ", frame.type, ": at most ",
          limits_.control_burst, " at once and ", limits_.controls_per_second, " a second"));
  }
}

}  // namespace fq
