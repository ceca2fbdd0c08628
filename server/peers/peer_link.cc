#include "server/peers/peer_link.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "kernels/base/status_macros.h"

namespace fq {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kDown = 0, kUp = 1;
// Of one direction. What waits starts together, because to start anything takes NCCL 0.1 ms (H200),
// and others are on their way meanwhile.
constexpr size_t kMaxTogether = 32, kMaxStarted = 3 * kMaxTogether;

uint64_t BytesOf(const PeerRegions& regions) {
  uint64_t bytes = 0;
  for (const PeerRegion& region : regions) bytes += region.bytes;
  return bytes;
}

}  // namespace

const char* PeerLinkEndName(PeerLinkEnd end) {
  switch (end) {
    case PeerLinkEnd::kClosed:
      return "closed";
    case PeerLinkEnd::kTimeout:
      return "timeout";
    case PeerLinkEnd::kFailed:
      return "failed";
    case PeerLinkEnd::kCall:
      return "call";
  }
  return "";
}

PeerLink::PeerLink(Parts parts) : parts_(std::move(parts)) {
  lanes_[kDown].comm = std::move(parts_.down);
  lanes_[kUp].comm = std::move(parts_.up);
  lanes_[kUp].direction = PeerDirection::kReceive;
  for (Lane& lane : lanes_) {
    lane.since = parts_.clock();
    lane.waiting.emplace(0, Operation{{parts_.hello}, nullptr, nullptr});
  }
  thread_ = std::thread([this] { Run(); });
}

PeerLink::~PeerLink() {
  Break(PeerLinkEnd::kClosed, "the node let it go");
  thread_.join();
}

absl::Status PeerLink::Broken() const {
  return absl::FailedPreconditionError(absl::StrCat("peer link broken: ", why_));
}

absl::StatusOr<uint64_t> PeerLink::Send(PeerRegions regions, std::shared_ptr<const void> keep) {
  absl::MutexLock lock(&mutex_);
  if (is_broken_) return Broken();
  Lane& lane = lanes_[kDown];
  if (lane.waiting.size() >= kMaxWaiting) {
    return absl::ResourceExhaustedError(
        absl::StrCat("peer link: ", lane.waiting.size(), " loads wait, at most ", kMaxWaiting));
  }
  lane.waiting.emplace(++last_sent_, Operation{std::move(regions), std::move(keep), nullptr});
  changed_.SignalAll();
  return last_sent_;
}

absl::Status PeerLink::Receive(uint64_t sequence, PeerRegions regions, Done done) {
  absl::MutexLock lock(&mutex_);
  if (is_broken_) return Broken();
  Lane& lane = lanes_[kUp];
  const uint64_t least = std::max<uint64_t>(lane.next, 1);
  if (sequence < least || sequence - least >= kMaxWaiting || lane.waiting.count(sequence) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("peer_sequence = ", sequence,
                                                   ": must be one of the ", kMaxWaiting, " from ",
                                                   least, " on that no call has named yet"));
  }
  lane.waiting.emplace(sequence, Operation{std::move(regions), nullptr, std::move(done)});
  changed_.SignalAll();
  return absl::OkStatus();
}

void PeerLink::Break(PeerLinkEnd end, std::string why) {
  absl::MutexLock lock(&mutex_);
  if (is_broken_) return;
  is_broken_ = true;
  end_ = end;
  why_ = std::move(why);
  changed_.SignalAll();
}

void PeerLink::AwaitEnd() const {
  absl::MutexLock lock(&mutex_);
  while (!ended_) changed_.Wait(&mutex_);
}

void PeerLink::Run() {
  for (Clock::time_point last_moved = Clock::now();;) {
    for (Lane& lane : lanes_) {
      const absl::StatusOr<bool> moved = Serve(lane);
      if (!moved.ok()) {
        Break(
            absl::IsDeadlineExceeded(moved.status()) ? PeerLinkEnd::kTimeout : PeerLinkEnd::kFailed,
            std::string(moved.status().message()));
      } else if (*moved) {
        last_moved = Clock::now();
      }
    }
    {
      absl::MutexLock lock(&mutex_);
      if (is_broken_) break;
    }
    Pause(last_moved);
  }
  GiveUp();
}

absl::StatusOr<bool> PeerLink::Serve(Lane& lane) {
  const Clock::time_point now = parts_.clock();  // before the look: what is done by now is in time
  FQ_ASSIGN_OR_RETURN(const bool ended, EndDone(lane));
  FQ_ASSIGN_OR_RETURN(const bool started, StartWaiting(lane));
  bool busy = !lane.started.empty();
  if (!busy) {
    absl::MutexLock lock(&mutex_);
    busy = !lane.waiting.empty();
  }
  if (ended || started || (busy && !lane.busy)) lane.since = now;
  lane.busy = busy;
  if (!busy || now - lane.since < parts_.timeout) return ended || started;
  return absl::DeadlineExceededError(
      absl::StrCat(lane.direction == PeerDirection::kSend ? "send " : "receive ", lane.completed,
                   " has not ended after ", parts_.timeout.count(), " ms"));
}

absl::StatusOr<bool> PeerLink::EndDone(Lane& lane) {
  if (lane.started.empty()) return false;
  FQ_ASSIGN_OR_RETURN(const uint64_t completed, lane.comm->Completed());
  const bool any = lane.completed < completed;
  for (; lane.completed < completed; ++lane.completed) {
    const Operation operation = std::move(lane.started.front());
    lane.started.pop_front();
    if (lane.completed == 0) joined_ = true;
    if (lane.completed > 0) parts_.moved(lane.direction, BytesOf(operation.regions));
    if (operation.done) operation.done(absl::OkStatus());
  }
  return any;
}

absl::StatusOr<bool> PeerLink::StartWaiting(Lane& lane) {
  {
    absl::MutexLock lock(&mutex_);
    if (lane.started.size() >= kMaxStarted || lane.waiting.count(lane.next) == 0) return false;
  }
  FQ_ASSIGN_OR_RETURN(const bool ready, lane.comm->Ready());
  if (!ready) return false;
  std::vector<const PeerRegions*> operations;
  {
    absl::MutexLock lock(&mutex_);
    while (operations.size() < kMaxTogether && lane.started.size() < kMaxStarted &&
           lane.waiting.count(lane.next) != 0) {
      auto node = lane.waiting.extract(lane.next++);
      lane.started.push_back(std::move(node.mapped()));
      operations.push_back(&lane.started.back().regions);
    }
  }
  FQ_RETURN_IF_ERROR(lane.comm->Start(operations));
  return true;
}

// Operations end within a millisecond when both sides are there: then it is worth to look often.
void PeerLink::Pause(Clock::time_point last_moved) {
  constexpr std::chrono::microseconds kSpin{200}, kShort{10'000};
  const bool busy = lanes_[kDown].busy || lanes_[kUp].busy;
  const auto idle = Clock::now() - last_moved;
  if (busy && idle < kSpin) return std::this_thread::yield();
  absl::MutexLock lock(&mutex_);
  if (is_broken_) return;
  if (busy) {
    changed_.WaitWithTimeout(&mutex_, absl::Microseconds(idle < kShort ? 20 : 500));
    return;
  }
  while (!is_broken_ && lanes_[kDown].waiting.empty() && lanes_[kUp].waiting.empty()) {
    changed_.Wait(&mutex_);
  }
}

void PeerLink::GiveUp() {
  std::thread other([this] { lanes_[kUp].comm->Abort(); });  // each takes NCCL half a second
  lanes_[kDown].comm->Abort();
  other.join();
  std::vector<Operation> left;
  absl::Status status;
  PeerLinkEnd end;
  std::string why;
  {
    absl::MutexLock lock(&mutex_);
    status = Broken();
    end = end_;
    why = why_;
    for (Lane& lane : lanes_) {
      for (auto& [sequence, operation] : lane.waiting) left.push_back(std::move(operation));
      lane.waiting.clear();
    }
  }
  for (Lane& lane : lanes_) {
    for (Operation& operation : lane.started) left.push_back(std::move(operation));
    lane.started.clear();
    lane.comm.reset();
  }
  parts_.broken(end, why);
  for (const Operation& operation : left) {
    if (operation.done) operation.done(status);
  }
  left.clear();
  parts_.window.reset();
  absl::MutexLock lock(&mutex_);
  ended_ = true;
  changed_.SignalAll();
}

}  // namespace fq
