// fqctl status: what the node is and how full.
#include "client/cli/command.h"
#include "kernels/base/status_macros.h"

namespace fq::cli {
namespace {

struct StatusFlags {};

absl::StatusOr<ExitCode> RunStatus(Command& command, StatusFlags&) {
  FQ_ASSIGN_OR_RETURN(const auto client, Connect(command));
  FQ_ASSIGN_OR_RETURN(const client::NodeStatus status, client->Status(command.deadline()));
  command.Show({{"version", status.version},
                {"build", status.build},
                {"uptime_seconds", status.uptime_seconds},
                {"state", status.state},
                {"host_capacity_bytes", status.host_capacity_bytes},
                {"host_used_bytes", status.host_used_bytes},
                {"blocks", status.blocks},
                {"sessions", status.sessions},
                {"leases", status.leases}});
  return ExitCode::kOk;
}

}  // namespace

void AddStatus(CLI::App& app, Command& command) {
  AddVerb(app, command, "status", "What the node is and how full (RPC Admin.Status)",
          std::make_shared<StatusFlags>(), RunStatus);
}

}  // namespace fq::cli
