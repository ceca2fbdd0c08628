// fqctl status: what the node is and how full.
#include "client/cli/command.h"
#include "kernels/base/status_macros.h"

namespace fq::cli {
namespace {

struct StatusFlags {};

absl::StatusOr<ExitCode> RunStatus(Command& command, StatusFlags&) {
  FQ_ASSIGN_OR_RETURN(const auto client, Connect(command));
  FQ_ASSIGN_OR_RETURN(const client::NodeStatus status, client->Status(command.deadline()));
  // 0 without a GPU.
  const auto of = [&status](const char* name) {
    const auto at = status.counters.find(name);
    return at == status.counters.end() ? uint64_t{0} : static_cast<uint64_t>(at->second);
  };
  command.Show({{"version", status.version},
                {"build", status.build},
                {"uptime_seconds", status.uptime_seconds},
                {"state", status.state},
                {"host_capacity_bytes", status.host_capacity_bytes},
                {"host_used_bytes", status.host_used_bytes},
                {"device_capacity_bytes", of("fq_device_capacity_bytes")},
                {"device_used_bytes", of("fq_device_used_bytes")},
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
