// Client side of the segment socket (proto/segment_socket.md). Any thread; each call connects anew.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/cpp/segment.h"

namespace fq::client {

using SessionId = std::array<uint8_t, 16>;

// One session's door to its node.
struct SegmentDoor {
  std::string socket_path;
  SessionId session_id{};
};

// Hands the descriptor over; returns the segment's id. Unavailable, DeadlineExceeded, or what the
// node answers.
absl::StatusOr<uint32_t> RegisterSegment(const SegmentDoor& door, const OwnedFd& memfd,
                                         uint64_t bytes, absl::Time deadline);
absl::Status UnregisterSegment(const SegmentDoor& door, uint32_t segment_id, absl::Time deadline);

}  // namespace fq::client
