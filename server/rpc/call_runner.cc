#include "server/rpc/call_runner.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
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

// A call counts until it is answered.
struct CountedCall {
  CountedCall(Node* the_node, const char* the_method) : node(the_node), method(the_method) {
    node->BeginCall();
  }

  void End(const absl::Status& status) const {
    const std::chrono::duration<double> took = SteadyNow() - begin;
    node->metrics().Add(Metric::kRequests, {method, absl::StatusCodeToString(status.code())}, 1);
    node->metrics().Add(Metric::kRequestSeconds, {method}, took.count());
    node->EndCall();
  }

  Node* node;
  const char* method;
  MonotonicTime begin = SteadyNow();
};

WorkerPool& PoolOf(const CallRunner::Method& method, Node& node) {
  return method.place == CallRunner::Method::Place::kFetcher ? node.fetchers() : node.workers();
}

// One call of gRPC on its way. Held by the job that answers it.
struct RunningCall {
  CountedCall counted;
  grpc::CallbackServerContext* context;
  grpc::ServerUnaryReactor* reactor;

  void Answer(const absl::Status& status) const {
    if (auto milliseconds = RetryAfterMs(status)) {
      context->AddTrailingMetadata(kRetryAfterMetadata, absl::StrCat(*milliseconds));
    }
    counted.End(status);
    reactor->Finish(ToGrpc(status));  // last: node and context may go once it is out
  }
};

// How long the caller will wait; none: it does not say.
std::optional<std::chrono::nanoseconds> LeftOf(const grpc::CallbackServerContext& context) {
  using WallClock = std::chrono::system_clock;
  const WallClock::time_point deadline = context.deadline();
  if (deadline == WallClock::time_point::max()) return std::nullopt;
  return deadline - WallClock::now();
}

}  // namespace

grpc::ServerUnaryReactor* CallRunner::Run(grpc::CallbackServerContext* context,
                                          const Method& method, Body body) const {
  auto* reactor = new Reactor(&replies_, context->peer());
  const RunningCall call{{node_, method.name}, context, reactor};
  CallContext limits =
      Limits(method, LeftOf(*context), [context] { return context->IsCancelled(); });
  limits.hold_reply = [reactor](uint64_t bytes) { return reactor->HoldReply(bytes); };
  auto job = [call, limits = std::move(limits), body = std::move(body)] {
    absl::Status status = limits.Check();  // it may have waited too long already
    call.Answer(status.ok() ? body(limits) : status);
  };
  if (method.place == Method::Place::kHere) {
    job();
  } else if (absl::Status queued = PoolOf(method, *node_).Submit(std::move(job)); !queued.ok()) {
    call.Answer(queued);
  }
  return call.reactor;
}

absl::Status CallRunner::RunHere(const Method& method,
                                 std::optional<std::chrono::nanoseconds> brought,
                                 std::function<bool()> cancelled, const Body& body) const {
  const CountedCall counted(node_, method.name);
  const CallContext limits = Limits(method, brought, std::move(cancelled));
  absl::Status status;
  const auto job = [&] {
    status = limits.Check();  // it may have waited too long already
    if (status.ok()) status = body(limits);
  };
  if (method.place == Method::Place::kHere) {
    job();
  } else {
    status.Update(PoolOf(method, *node_).Run(job));
  }
  counted.End(status);
  return status;
}

void CallRunner::BeginAndGoOn(const CallContext& limits, const Begin& begin, Body body,
                              Resume answer) const {
  const absl::Status begun =
      begin([node = node_, limits, body = std::move(body), answer](const absl::Status& waited) {
        if (!waited.ok()) return answer(waited);
        node->workers().Resume([limits, body, answer] { answer(body(limits)); });
      });
  if (!begun.ok()) answer(begun);
}

grpc::ServerUnaryReactor* CallRunner::RunAfter(grpc::CallbackServerContext* context,
                                               const Method& method, const Begin& begin,
                                               Body body) const {
  auto* reactor = new Reactor(&replies_, context->peer());
  const RunningCall call{{node_, method.name}, context, reactor};
  const CallContext limits =
      Limits(method, LeftOf(*context), [context] { return context->IsCancelled(); });
  BeginAndGoOn(limits, begin, std::move(body),
               [call](const absl::Status& status) { call.Answer(status); });
  return reactor;
}

absl::Status CallRunner::RunHereAfter(const Method& method,
                                      std::optional<std::chrono::nanoseconds> brought,
                                      std::function<bool()> cancelled, const Begin& begin,
                                      const Body& body) const {
  const CountedCall counted(node_, method.name);
  const CallContext limits = Limits(method, brought, std::move(cancelled));
  absl::Notification answered;
  absl::Status answer;
  BeginAndGoOn(limits, begin, body, [&](const absl::Status& status) {
    answer = status;
    answered.Notify();
  });
  answered.WaitForNotification();
  counted.End(answer);
  return answer;
}

CallContext CallRunner::Limits(const Method& method,
                               std::optional<std::chrono::nanoseconds> brought,
                               std::function<bool()> cancelled) const {
  CallContext limits;
  limits.deadline = DeadlineOf(method, brought);
  limits.cancelled = std::move(cancelled);
  return limits;
}

MonotonicTime CallRunner::DeadlineOf(const Method& method,
                                     std::optional<std::chrono::nanoseconds> brought) const {
  const Options& options = node_->options();
  const std::chrono::nanoseconds longest = method.deadline == Method::Deadline::kCapped
                                               ? Milliseconds(options.max_deadline_ms)
                                               : std::chrono::hours(24);
  if (!brought && method.deadline == Method::Deadline::kCallers) return MonotonicTime::max();
  if (!brought) return SteadyNow() + Milliseconds(options.default_deadline_ms);
  return SteadyNow() + std::clamp(*brought, std::chrono::nanoseconds::zero(), longest);
}

}  // namespace fq
