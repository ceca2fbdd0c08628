#include "server/connections/relay.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace fq {
namespace {

constexpr Milliseconds kGlance{500};  // until the next look at Flags::hang_up, whatever comes
constexpr Milliseconds kPace{10};     // until a frame that came too fast is judged again

Milliseconds Until(MonotonicTime then, MonotonicTime now) {
  return std::max(Milliseconds(0),
                  std::chrono::duration_cast<Milliseconds>(then - now) + Milliseconds(1));
}

bool WouldBlock() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

}  // namespace

void RelayBuffer::Drop(size_t sent) {
  begin += sent;
  if (begin < end && end < kBytes) return;
  std::memmove(bytes.get(), bytes.get() + begin, end - begin);
  judged -= begin;
  end -= begin;
  begin = 0;
}

Relay::Relay(PeerStream* peer, int node, RequestRoom* room, const ConnectionTimes& times,
             MonotonicTime begin, Flags* flags)
    : peer_(peer), node_(node), times_(times), begin_(begin), flags_(flags), requests_(room) {}

absl::Status Relay::Run() {
  while (!peer_gone_ && !(node_ended_ && out_.empty())) {
    Wait(SteadyNow());
    if (flags_->hang_up) return absl::CancelledError("told to hang up");
    const MonotonicTime now = SteadyNow();
    FQ_RETURN_IF_ERROR(TakeFromPeer(now));
    GiveToNode();
    TakeFromNode(now);
    GiveToPeer(now);
    FQ_RETURN_IF_ERROR(CheckTimes(now));
  }
  peer_->Close();
  return absl::OkStatus();
}

Milliseconds Relay::Timeout(MonotonicTime now) const {
  if (WantsPeer() && peer_->has_pending()) return Milliseconds(0);
  if (too_fast_) return kPace;
  if (!filter_.introduced()) return std::min(kGlance, Until(begin_ + times_.introduction, now));
  if (!out_.empty()) return std::min(kGlance, Until(progress_ + times_.stall, now));
  return kGlance;
}

void Relay::Wait(MonotonicTime now) {
  short peer_events = 0, node_events = 0;
  if (WantsPeer()) peer_events |= peer_->read_events();
  if (too_fast_) peer_events |= POLLRDHUP;  // whoever leaves meanwhile needs no answer
  if (!out_.empty()) peer_events |= peer_->write_events();
  if (!in_.ready().empty()) node_events |= POLLOUT;
  if (out_.empty() && !node_ended_) node_events |= POLLIN;
  // A side that nothing is wanted of must not wake the thread by having hung up.
  pollfd polled[] = {{peer_events != 0 ? peer_->fd() : -1, peer_events, 0},
                     {node_events != 0 ? node_ : -1, node_events, 0}};
  if (poll(polled, 2, static_cast<int>(Timeout(now).count())) < 0) polled[0].revents = 0;
  if (too_fast_ && (polled[0].revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0) peer_gone_ = true;
  peer_readable_ = WantsPeer() && (polled[0].revents != 0 || peer_->has_pending());
  node_readable_ = (polled[1].revents & ~POLLOUT) != 0;
}

absl::Status Relay::CheckTimes(MonotonicTime now) const {
  if (!filter_.introduced() && now - begin_ >= times_.introduction) {
    return absl::DeadlineExceededError(
        absl::StrCat("no HTTP/2 within ", times_.introduction.count(), " ms"));
  }
  if (!out_.empty() && now - progress_ >= times_.stall) {
    return absl::DeadlineExceededError(absl::StrCat("the peer takes nothing for ",
                                                    times_.stall.count(), " ms while ",
                                                    out_.end - out_.begin, " bytes wait"));
  }
  return absl::OkStatus();
}

absl::Status Relay::TakeFromPeer(MonotonicTime now) {
  if (peer_readable_) {
    const std::optional<size_t> bytes = peer_->Read(in_.room());
    if (bytes.has_value()) in_.end += *bytes;
    peer_ended_ = !bytes.has_value();
  }
  FQ_ASSIGN_OR_RETURN(const FrameVerdict verdict, filter_.Check(in_.unjudged(), now));
  in_.judged += verdict.pass;
  too_fast_ = verdict.too_fast;
  if (filter_.has_asked()) flags_->has_asked = true;
  return absl::OkStatus();
}

void Relay::GiveToNode() {
  if (!in_.ready().empty()) {
    const ssize_t sent =
        send(node_, in_.ready().data(), in_.ready().size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent > 0) in_.Drop(static_cast<size_t>(sent));
    if (sent < 0 && !WouldBlock()) in_.Drop(in_.ready().size());  // gRPC has hung up; it says why
  }
  if (peer_ended_ && in_.ready().empty() && !too_fast_ && !node_told_) {
    shutdown(node_, SHUT_WR);
    node_told_ = true;
  }
}

void Relay::TakeFromNode(MonotonicTime now) {
  if (!node_readable_ || !out_.empty()) return;
  const ssize_t bytes = recv(node_, out_.bytes.get(), RelayBuffer::kBytes, MSG_DONTWAIT);
  if (bytes > 0) {
    out_.judged = out_.end = static_cast<size_t>(bytes);
    progress_ = now;
    filter_.OnGreeted();
    requests_.OnNodeBytes(out_.ready());
  }
  node_ended_ = bytes == 0 || (bytes < 0 && !WouldBlock());
}

void Relay::GiveToPeer(MonotonicTime now) {
  if (out_.empty()) return;
  const std::optional<size_t> bytes = peer_->Write(out_.ready());
  if (!bytes.has_value()) {
    peer_gone_ = true;
    return;
  }
  if (*bytes > 0) progress_ = now;
  out_.Drop(*bytes);
}

}  // namespace fq
