// fqctl stats: every metric of the node.
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "kernels/base/status_macros.h"

namespace fq::cli {
namespace {

struct StatsFlags {
  std::string prefix;
};

absl::StatusOr<ExitCode> RunStats(Command& command, StatsFlags& flags) {
  FQ_ASSIGN_OR_RETURN(const auto client, Connect(command));
  FQ_ASSIGN_OR_RETURN(const client::NodeStatus status, client->Status(command.deadline()));
  Json metrics = Json::object();
  for (const auto& [name, value] : status.counters) {
    if (absl::StartsWith(name, flags.prefix)) metrics[name] = value;
  }
  if (metrics.empty()) {
    return absl::NotFoundError(absl::StrCat("--prefix = ", flags.prefix, ": no metric begins so"));
  }
  command.Show(metrics);
  return ExitCode::kOk;
}

}  // namespace

void AddStats(CLI::App& app, Command& command) {
  const auto flags = std::make_shared<StatsFlags>();
  CLI::App& verb = AddVerb(app, command, "stats",
                           "Every metric of the node, by name (RPC Admin.Status)", flags, RunStats);
  AddFlag(verb, "prefix", flags->prefix, "only metrics whose names begin so");
}

}  // namespace fq::cli
