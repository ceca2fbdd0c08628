// Carries the bytes of one connection between a peer and gRPC, both ways, through a FrameFilter.
// Holds at most two buffers of 64 KiB: while the peer does not take what is for it, nothing more is
// read from it, so that gRPC never answers into the void.
#pragma once

#include <atomic>
#include <memory>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "server/clock.h"
#include "server/connections/frame_filter.h"
#include "server/connections/open_requests.h"
#include "server/connections/peer_stream.h"

namespace fq {

struct ConnectionTimes {
  Milliseconds introduction{5000};  // TLS handshake, HTTP/2 preface and first settings
  Milliseconds stall{10'000};       // a peer that takes none of the bytes for it
};

// Bytes on their way in one direction: [begin, judged) may go on, [judged, end) has just come.
struct RelayBuffer {
  static constexpr size_t kBytes = 64 << 10;
  std::unique_ptr<std::byte[]> bytes{new std::byte[kBytes]};  // touched as far as it is used
  size_t begin = 0, judged = 0, end = 0;

  bool empty() const { return begin == end; }
  bool full() const { return end == kBytes; }
  absl::Span<std::byte> room() { return {bytes.get() + end, kBytes - end}; }
  absl::Span<const std::byte> ready() const { return {bytes.get() + begin, judged - begin}; }
  absl::Span<const std::byte> unjudged() const { return {bytes.get() + judged, end - judged}; }
  void Drop(size_t sent);  // from the front
};

class Relay {
 public:
  struct Flags {                         // shared with the gate
    std::atomic<bool> has_asked{false};  // the peer has sent a request
    std::atomic<bool> hang_up{false};    // end now
  };

  // `node` is the non-blocking socket whose other end gRPC has. All must outlive this object.
  // `begin` is when the connection came.
  Relay(PeerStream* peer, int node, RequestRoom* room, const ConnectionTimes& times,
        MonotonicTime begin, Flags* flags);

  // Returns OK when one side ended. Otherwise why it must: DeadlineExceeded of `times`, or as
  // FrameFilter::Check; Cancelled: told to hang up.
  absl::Status Run();

 private:
  void Wait(MonotonicTime now);
  absl::Status CheckTimes(MonotonicTime now) const;
  absl::Status TakeFromPeer(MonotonicTime now);
  void GiveToNode();
  void TakeFromNode(MonotonicTime now);
  void GiveToPeer(MonotonicTime now);
  bool WantsPeer() const { return !peer_ended_ && !too_fast_ && out_.empty() && !in_.full(); }
  Milliseconds Timeout(MonotonicTime now) const;

  PeerStream* const peer_;
  const int node_;
  const ConnectionTimes times_;
  const MonotonicTime begin_;
  Flags* const flags_;
  OpenRequests requests_;
  FrameFilter filter_{&requests_};
  RelayBuffer in_, out_;
  MonotonicTime progress_{};  // when the peer last took something
  bool peer_readable_ = false, node_readable_ = false;
  bool too_fast_ = false;
  bool peer_ended_ = false, node_ended_ = false, node_told_ = false, peer_gone_ = false;
};

}  // namespace fq
