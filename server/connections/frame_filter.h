// What a peer sends, judged frame by frame before gRPC sees it. gRPC 1.51 keeps an unfinished
// header block, the errors of every ping past its own limit and what it could not write yet in
// memory without bound; behind this filter none of them can grow. Looks at the headers of HTTP/2
// frames only, never at what is in them. One object per connection; one thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/clock.h"
#include "server/connections/frame_header.h"
#include "server/connections/open_requests.h"
#include "server/connections/token_bucket.h"

namespace fq {

// Far above what any gRPC client sends, far below what hurts.
struct FrameLimits {
  uint32_t max_header_block_bytes = 32 << 10;  // HEADERS and its CONTINUATIONs
  uint32_t max_control_bytes = 16 << 10;       // of one frame that is not DATA
  uint32_t max_requests_before_ack = 32;  // HEADERS before the peer knows how many streams it has
  double control_burst = 300, controls_per_second = 100;    // PING, SETTINGS, ...: more hangs up
  double reset_burst = 100, resets_per_second = 100;        // RST_STREAM: more waits
  double window_burst = 2000, windows_per_second = 10'000;  // WINDOW_UPDATE: more waits
  double crumb_burst = 1000, crumbs_per_second = 1000;      // DATA of few bytes: more waits
};

struct FrameVerdict {
  size_t pass = 0;        // bytes of the front that may go to gRPC
  bool too_fast = false;  // the next frame must wait: ask again a little later
};

class FrameFilter {
 public:
  // `requests` hears of every frame that passes.
  explicit FrameFilter(OpenRequests* requests, const FrameLimits& limits = {});

  // `bytes` are what has come and was not passed yet. An incomplete frame header stays behind.
  // InvalidArgument, ResourceExhausted: hang up; the text says which rule was broken, with both
  // values.
  absl::StatusOr<FrameVerdict> Check(absl::Span<const std::byte> bytes, MonotonicTime now);

  // The node's own settings are on their way: from here on they may be acknowledged.
  void OnGreeted() { greeted_ = true; }

  // The peer speaks HTTP/2: preface and first SETTINGS have come.
  bool introduced() const { return introduced_; }
  // It has sent a request.
  bool has_asked() const { return has_asked_; }

 private:
  enum class Pace { kNow, kLater };

  absl::Status CheckPreface(absl::Span<const std::byte> bytes);
  absl::StatusOr<Pace> Admit(const FrameHeader& frame, MonotonicTime now);
  absl::Status CheckOrder(const FrameHeader& frame) const;
  absl::Status CheckHeaderBlock(const FrameHeader& frame);
  absl::StatusOr<Pace> CheckPace(const FrameHeader& frame, MonotonicTime now);

  OpenRequests* const requests_;
  const FrameLimits limits_;
  TokenBucket controls_, resets_, windows_, crumbs_;
  size_t preface_seen_ = 0;    // bytes
  uint32_t payload_left_ = 0;  // bytes of the frame that is passing
  uint32_t header_block_ = 0;  // bytes of the open or last header block
  uint32_t requests_before_ack_ = 0;
  bool in_header_block_ = false;
  bool introduced_ = false, greeted_ = false, acknowledged_ = false, has_asked_ = false;
};

}  // namespace fq
