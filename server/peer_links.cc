#include "server/peer_links.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/device/device_window.h"
#include "server/page_layout.h"

namespace fq {

PeerLinks::PeerLinks(Device* device, std::unique_ptr<PeerTransport> transport,
                     const PeerLimits& limits, const Metrics* metrics, const Log* log, Clock clock)
    : device_(device),
      transport_(std::move(transport)),
      limits_(limits),
      metrics_(metrics),
      log_(log),
      clock_(std::move(clock)) {}

void PeerLinks::EndAll() {
  absl::MutexLock lock(&mutex_);
  for (const auto& link : links_) link->Break(PeerLinkEnd::kClosed, "the node stops");
}

PeerLinks::~PeerLinks() {
  EndAll();
  std::vector<std::shared_ptr<PeerLink>> links;
  {
    absl::MutexLock lock(&mutex_);
    links.swap(links_);
  }
  for (const auto& link : links) link->AwaitEnd();
}

absl::StatusOr<std::shared_ptr<const void>> PeerLinks::TakeRoom(uint64_t bytes) {
  const std::lock_guard lock(taken_->mutex);
  if (taken_->windows >= limits_.max_links) {
    return absl::ResourceExhaustedError(absl::StrCat("max-peer-links: ", taken_->windows,
                                                     " are open, at most ", limits_.max_links));
  }
  if (bytes > limits_.window_bytes - taken_->bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("peer-window-bytes: windows take ", taken_->bytes, " bytes, ", bytes,
                     " more are asked for, at most ", limits_.window_bytes));
  }
  ++taken_->windows;
  taken_->bytes += bytes;
  return std::shared_ptr<const void>(nullptr, [taken = taken_, bytes](const void*) {
    const std::lock_guard lock(taken->mutex);
    --taken->windows;
    taken->bytes -= bytes;
  });
}

absl::StatusOr<std::shared_ptr<const DeviceSegment>> PeerLinks::TakeWindow(uint64_t window_bytes,
                                                                           const SlabShape& shape) {
  Reap();
  if (unjoined_ >= kMaxUnjoined) {
    return absl::ResourceExhaustedError(absl::StrCat("the workers of ", unjoined_.load(),
                                                     " peer links never came, at most ",
                                                     kMaxUnjoined, ": restart the node"));
  }
  FQ_ASSIGN_OR_RETURN(auto room, TakeRoom(WindowMemoryBytes(window_bytes)));
  FQ_ASSIGN_OR_RETURN(auto window, AllocateWindow(*device_, window_bytes, std::move(room)));
  return DeviceSegment::Over(std::move(window), shape.layers(),
                             DenseBlockBytes(shape) / shape.layers());
}

absl::StatusOr<PeerLinks::Opened> PeerLinks::Open(uint64_t window_bytes, Milliseconds timeout,
                                                  const SlabShape& shape) {
  Opened result;
  PeerSegment& segment = result.segment;
  FQ_ASSIGN_OR_RETURN(segment.window, TakeWindow(window_bytes, shape));
  segment.begin = segment.window->layers()[0];
  segment.bytes = window_bytes;
  PeerLink::Parts parts;
  FQ_ASSIGN_OR_RETURN(result.down, transport_->MakeId());
  FQ_ASSIGN_OR_RETURN(result.up, transport_->MakeId());
  FQ_ASSIGN_OR_RETURN(parts.down, transport_->Join(result.down, PeerDirection::kSend));
  FQ_ASSIGN_OR_RETURN(parts.up, transport_->Join(result.up, PeerDirection::kReceive));
  segment.link = Make(std::move(parts), segment.window, timeout);
  return result;
}

// What the other node sends is what we receive.
absl::StatusOr<PeerLinks::Joined> PeerLinks::JoinOther(const PeerId& down, const PeerId& up,
                                                       Milliseconds timeout,
                                                       const SlabShape& shape) {
  Joined result;
  FQ_ASSIGN_OR_RETURN(result.scratch, TakeWindow(DenseBlockBytes(shape), shape));
  PeerLink::Parts parts;
  FQ_ASSIGN_OR_RETURN(parts.down, transport_->JoinOther(up, PeerDirection::kSend));
  FQ_ASSIGN_OR_RETURN(parts.up, transport_->JoinOther(down, PeerDirection::kReceive));
  result.link = Make(std::move(parts), result.scratch, timeout);
  return result;
}

std::shared_ptr<PeerLink> PeerLinks::Make(PeerLink::Parts parts,
                                          std::shared_ptr<const DeviceSegment> window,
                                          Milliseconds timeout) {
  parts.hello = {window->layers()[0], kPeerHelloBytes};
  parts.window = std::move(window);
  parts.timeout = timeout;
  parts.moved = [this](PeerDirection direction, uint64_t bytes) {
    metrics_->Add(Metric::kPeerBytes, {direction == PeerDirection::kSend ? "send" : "receive"},
                  static_cast<double>(bytes));
  };
  parts.broken = [this](PeerLinkEnd end, const std::string& why) { Ended(end, why); };
  auto link = std::make_shared<PeerLink>(std::move(parts));
  absl::MutexLock lock(&mutex_);
  links_.push_back(link);
  return link;
}

void PeerLinks::Ended(PeerLinkEnd end, const std::string& why) const {
  if (end == PeerLinkEnd::kClosed) return;
  metrics_->Add(Metric::kPeerLinksBroken, {PeerLinkEndName(end)}, 1);
  if (log_ == nullptr) return;
  log_->Write(LogLevel::kWarning, "peer_link_broken",
              {{"kind", PeerLinkEndName(end)}, {"reason", why}});
}

size_t PeerLinks::Reap() {
  std::vector<std::shared_ptr<PeerLink>> gone;  // let go without the lock
  absl::MutexLock lock(&mutex_);
  const auto ended = std::stable_partition(links_.begin(), links_.end(),
                                           [](const auto& link) { return !link->ended(); });
  gone.assign(std::make_move_iterator(ended), std::make_move_iterator(links_.end()));
  links_.erase(ended, links_.end());
  for (const auto& link : gone) unjoined_ += link->joined() ? 0 : 1;
  return links_.size();
}

}  // namespace fq
