#include "server/connections/frame_filter.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/base/status_macros.h"

namespace fq {
namespace {

constexpr absl::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
constexpr size_t kFrameHeaderBytes = 9;
constexpr uint32_t kCrumbBytes = 256;  // DATA below it that does not end its stream is a crumb
enum Type : uint8_t {
  kData = 0,
  kHeaders = 1,
  kResetStream = 3,
  kSettings = 4,
  kWindowUpdate = 8,
  kContinuation = 9
};
constexpr uint8_t kEndStream = 1, kAck = 1, kEndHeaders = 4;

}  // namespace

FrameFilter::FrameFilter(const FrameLimits& limits)
    : limits_(limits),
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
      if (bytes.size() - at < kFrameHeaderBytes) break;
      const Frame frame = Parse(&bytes[at]);
      FQ_ASSIGN_OR_RETURN(Pace pace, Admit(frame, now));
      if (pace == Pace::kLater) return FrameVerdict{at, true};
      at += kFrameHeaderBytes;
      payload_left_ = frame.length;
    }
    const uint32_t part = static_cast<uint32_t>(std::min<size_t>(payload_left_, bytes.size() - at));
    at += part;
    payload_left_ -= part;
  }
  return FrameVerdict{at};
}

FrameFilter::Frame FrameFilter::Parse(const std::byte* header) {
  auto byte = [header](int i) { return std::to_integer<uint32_t>(header[i]); };
  return {byte(0) << 16 | byte(1) << 8 | byte(2), std::to_integer<uint8_t>(header[3]),
          std::to_integer<uint8_t>(header[4])};
}

absl::Status FrameFilter::CheckPreface(absl::Span<const std::byte> bytes) {
  const size_t part = std::min(kPreface.size() - preface_seen_, bytes.size());
  if (std::memcmp(bytes.data(), kPreface.data() + preface_seen_, part) == 0) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError("not HTTP/2: the connection preface differs");
}

absl::StatusOr<FrameFilter::Pace> FrameFilter::Admit(const Frame& frame, MonotonicTime now) {
  FQ_RETURN_IF_ERROR(CheckOrder(frame));
  if (frame.type != kData && frame.length > limits_.max_control_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat("frame of type ", frame.type, " has ",
                                                     frame.length, " bytes: at most ",
                                                     limits_.max_control_bytes));
  }
  FQ_ASSIGN_OR_RETURN(Pace pace, CheckPace(frame, now));
  if (pace == Pace::kLater) return pace;
  FQ_RETURN_IF_ERROR(CheckHeaderBlock(frame));
  introduced_ = true;
  if (frame.type == kSettings && (frame.flags & kAck) != 0) acknowledged_ = true;
  return pace;
}

absl::Status FrameFilter::CheckOrder(const Frame& frame) const {
  if (!introduced_ && (frame.type != kSettings || (frame.flags & kAck) != 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("first frame has type ", frame.type, ": must be SETTINGS (", kSettings, ")"));
  }
  if (in_header_block_ != (frame.type == kContinuation)) {
    return absl::InvalidArgumentError(absl::StrCat("frame of type ", frame.type,
                                                   in_header_block_ ? " inside" : " outside",
                                                   " a header block"));
  }
  if (frame.type == kSettings && (frame.flags & kAck) != 0 && !greeted_) {
    return absl::InvalidArgumentError("settings acknowledged before they were sent");
  }
  return absl::OkStatus();
}

absl::Status FrameFilter::CheckHeaderBlock(const Frame& frame) {
  if (frame.type != kHeaders && frame.type != kContinuation) return absl::OkStatus();
  if (frame.type == kHeaders) {
    header_block_ = 0;
    if (!acknowledged_ && ++requests_before_ack_ > limits_.max_requests_before_ack) {
      return absl::ResourceExhaustedError(absl::StrCat(
          requests_before_ack_, " requests before the settings were acknowledged: ", "at most ",
          limits_.max_requests_before_ack));
    }
  }
  in_header_block_ = (frame.flags & kEndHeaders) == 0;
  if (!in_header_block_) has_asked_ = true;
  // The frame's own header counts too, or empty CONTINUATIONs could go on for ever.
  header_block_ += frame.length + kFrameHeaderBytes;
  if (header_block_ <= limits_.max_header_block_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "header block of ", header_block_, " bytes: at most ", limits_.max_header_block_bytes));
}

absl::StatusOr<FrameFilter::Pace> FrameFilter::CheckPace(const Frame& frame, MonotonicTime now) {
  switch (frame.type) {
    case kHeaders:
    case kContinuation:
      return Pace::kNow;
    case kWindowUpdate:
      return windows_.Take(now) ? Pace::kNow : Pace::kLater;
    case kData:
      if (frame.length >= kCrumbBytes || (frame.flags & kEndStream) != 0) return Pace::kNow;
      return crumbs_.Take(now) ? Pace::kNow : Pace::kLater;
    case kResetStream:
      return resets_.Take(now) ? Pace::kNow : Pace::kLater;
    default:
      if (controls_.Take(now)) return Pace::kNow;
      return absl::ResourceExhaustedError(absl::StrCat(
          "flood of control frames, the last of type ", frame.type, ": at most ",
          limits_.control_burst, " at once and ", limits_.controls_per_second, " a second"));
  }
}

}  // namespace fq
