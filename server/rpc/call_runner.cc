#include "server/rpc/call_runner.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/retry_after.h"
#include "server/rpc/status.h"

namespace fq {
namespace {

// Holds the room of its reply until that is out or given up; then deletes itself.
class Reactor : public grpc::ServerUnaryReactor {
 public:
  Reactor(ReplyRoom* replies, std::string peer) : replies_(replies), peer_(std::move(peer)) {}
  // As ReplyRoom::Take. Called at most once.
  absl::Status HoldReply(uint64_t bytes) {
    absl::Status status = replies_->Take(peer_, bytes);
    if (status.ok()) held_ = bytes;
    return status;
  }
  void OnDone() override {
    if (held_ > 0) replies_->Give(peer_, held_);
    delete this;
  }

 private:
  ReplyRoom* const replies_;
  const std::string peer_;
  uint64_t held_ = 0;
};

// One call on its way. Held by the job that answers it.
struct RunningCall {
  Node* node;
  grpc::CallbackServerContext* context;
  grpc::ServerUnaryReactor* reactor;
  const char* method;
  MonotonicTime begin;

  void Answer(const absl::Status& status) const {
    const std::chrono::duration<double> took = SteadyNow() - begin;
    node->metrics().Add(Metric::kRequests, {method, absl::StatusCodeToString(status.code())}, 1);
    node->metrics().Add(Metric::kRequestSeconds, {method}, took.count());
    if (auto milliseconds = RetryAfterMs(status)) {
      context->AddTrailingMetadata(kRetryAfterMetadata, absl::StrCat(*milliseconds));
    }
    node->EndCall();
    reactor->Finish(ToGrpc(status));  // last: node and context may go once it is out
  }
};

}  // namespace

grpc::ServerUnaryReactor* CallRunner::Run(grpc::CallbackServerContext* context,
                                          const Method& method, Body body) const {
  auto* reactor = new Reactor(&replies_, context->peer());
  RunningCall call{node_, context, reactor, method.name, SteadyNow()};
  CallContext limits;
  limits.deadline = DeadlineOf(*context, method);
  limits.cancelled = [context] { return context->IsCancelled(); };
  limits.hold_reply = [reactor](uint64_t bytes) { return reactor->HoldReply(bytes); };
  node_->BeginCall();
  auto job = [call, limits = std::move(limits), body = std::move(body)] {
    absl::Status status = limits.Check();  // it may have waited too long already
    call.Answer(status.ok() ? body(limits) : status);
  };
  if (method.place == Method::Place::kHere) {
    job();
  } else if (absl::Status queued = node_->workers().Submit(std::move(job)); !queued.ok()) {
    call.Answer(queued);
  }
  return call.reactor;
}

MonotonicTime CallRunner::DeadlineOf(const grpc::CallbackServerContext& context,
                                     const Method& method) const {
  using WallClock = std::chrono::system_clock;
  const MonotonicTime now = SteadyNow();
  const WallClock::time_point deadline = context.deadline();
  const Options& options = node_->options();
  const bool brought = deadline != WallClock::time_point::max();
  const auto longest = method.deadline == Method::Deadline::kCapped
                           ? Milliseconds(options.max_deadline_ms)
                           : std::chrono::hours(24);
  if (!brought && method.deadline == Method::Deadline::kCallers) return MonotonicTime::max();
  if (!brought) return now + Milliseconds(options.default_deadline_ms);
  const auto left = std::clamp<WallClock::duration>(deadline - WallClock::now(),
                                                    WallClock::duration::zero(), longest);
  return now + left;
}

}  // namespace fq
