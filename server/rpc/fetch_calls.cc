#include "server/rpc/fetch_calls.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/connections/tls.h"
#include "server/rpc/fetch_run.h"
#include "server/rpc/fill.h"
#include "server/rpc/to_calls.h"

namespace fq {
namespace {

constexpr Milliseconds kReplyTimeMax{100};

// Ends before the caller stops waiting, so that it hears what has been fetched.
CallContext WithTimeToReply(CallContext call) {
  const MonotonicTime now = SteadyNow();
  const auto left = std::max(call.deadline - now, MonotonicTime::duration::zero());
  call.deadline -= std::min<MonotonicTime::duration>(left / 8, kReplyTimeMax);
  return call;
}

std::string ReadText(const std::string& path) {
  std::ostringstream text;
  if (!path.empty()) text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

const char* ResultName(BlockOutcome outcome) {
  switch (outcome) {
    case BlockOutcome::kOk:
      return "ok";
    case BlockOutcome::kExists:
      return "exists";
    case BlockOutcome::kMiss:
      return "miss";
    case BlockOutcome::kFull:
      return "full";
    case BlockOutcome::kBelowFloor:
      return "below_floor";
    case BlockOutcome::kRefused:
      break;
  }
  return "refused";
}

const char* ReasonName(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kDeadlineExceeded:
      return "deadline";
    case absl::StatusCode::kCancelled:
      return "cancelled";
    case absl::StatusCode::kPermissionDenied:
      return "denied";
    case absl::StatusCode::kFailedPrecondition:
      return "mismatch";
    case absl::StatusCode::kResourceExhausted:
      return "limit";
    case absl::StatusCode::kDataLoss:
      return "malformed";
    default:
      return "unreachable";
  }
}

void Count(const Metrics& metrics, const FetchRun& run, const absl::Status& status) {
  for (BlockOutcome outcome : run.outcomes()) {
    metrics.Add(Metric::kFetchedBlocks, {ResultName(outcome)}, 1);
  }
  metrics.Add(Metric::kFetchedBytes, {"grpc"}, static_cast<double>(run.grpc_bytes()));
  metrics.Add(Metric::kFetchedBytes, {"nccl"}, static_cast<double>(run.nccl_bytes()));
  if (!status.ok()) metrics.Add(Metric::kFetchesStopped, {ReasonName(status.code())}, 1);
}

}  // namespace

absl::StatusOr<std::unique_ptr<FetchCalls>> FetchCalls::Create(Node* node) {
  const Options& options = node->options();
  FQ_RETURN_IF_ERROR(
      CheckFetchTls({options.fetch_tls_cert, options.fetch_tls_key, options.fetch_tls_ca}));
  const RemoteTls tls{ReadText(options.fetch_tls_ca), ReadText(options.fetch_tls_cert),
                      ReadText(options.fetch_tls_key)};
  return std::unique_ptr<FetchCalls>(new FetchCalls(node, tls));
}

FetchCalls::FetchCalls(Node* node, const RemoteTls& tls)
    : node_(node), nodes_(node->options().fetch_from, tls, node->options().max_inline_bytes) {}

absl::Status FetchCalls::Fetch(const CallContext& call, const grpc::CallbackServerContext* parent,
                               const Session& session, const wire::FetchRequest& request,
                               wire::FetchResponse& response) const {
  const FetchRun::Source source{nodes_.Find(request.node()), parent};
  if (source.channel == nullptr) {
    return absl::PermissionDeniedError(absl::StrCat("node = ", absl::CHexEscape(request.node()),
                                                    ": none of this node's --fetch-from"));
  }
  FetchRun run(node_, *session.space, ToKeys(request.keys()), request.min_profile());
  const absl::Status status = run.Run(WithTimeToReply(call), source);
  Count(node_->metrics(), run, status);
  FillStatuses(run.outcomes(), response);
  response.set_stopped_code(static_cast<uint32_t>(status.code()));
  response.set_stopped(std::string(status.message()));
  return absl::OkStatus();
}

}  // namespace fq
