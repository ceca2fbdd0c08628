// How much of requests gRPC holds: what has come of those that are not answered yet. A request is
// read whole before anybody looks at it, so a peer could leave any number of them unfinished.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "server/connections/frame_header.h"

namespace fq {

// What the requests of all connections may take together. Thread-safe.
class RequestRoom {
 public:
  explicit RequestRoom(uint64_t bytes) : bytes_(bytes) {}
  uint64_t held() const { return held_; }

 private:
  friend class OpenRequests;
  const uint64_t bytes_;
  std::atomic<uint64_t> held_{0};
  std::atomic<uint64_t> holders_{0};  // connections that hold something
};

// Those of one connection. One thread.
class OpenRequests {
 public:
  explicit OpenRequests(RequestRoom* room) : room_(room) {}
  ~OpenRequests();
  OpenRequests(const OpenRequests&) = delete;
  OpenRequests& operator=(const OpenRequests&) = delete;

  // A frame that goes to gRPC. ResourceExhausted: the room is used up, and more than its share of
  // it by this connection. So all connections together never hold more than twice the room.
  absl::Status OnPeerFrame(const FrameHeader& frame);

  // Bytes that gRPC sends, any part of frames: whatever is answered or reset is not open any more.
  void OnNodeBytes(absl::Span<const std::byte> bytes);

  uint64_t held() const { return held_; }

 private:
  void Add(uint64_t bytes);
  void Forget(uint32_t stream);
  void Give(uint64_t bytes);

  RequestRoom* const room_;
  absl::flat_hash_map<uint32_t, uint64_t> streams_;  // open ones -> bytes that came
  uint64_t held_ = 0;
  std::array<std::byte, FrameHeader::kBytes> header_{};  // of the node's next frame
  size_t header_bytes_ = 0;                              // that have come
  uint32_t payload_left_ = 0;                            // of the node's frame that is passing
};

}  // namespace fq
