// fqctl verify: have the node check every block that it holds.
#include <algorithm>

#include "client/cli/command.h"
#include "kernels/base/status_macros.h"

namespace fq::cli {
namespace {

constexpr absl::Duration kVerifyDeadline = absl::Seconds(30);  // it reads everything

struct VerifyFlags {
  std::string namespace_name;
};

absl::StatusOr<ExitCode> RunVerify(Command& command, VerifyFlags& flags) {
  FQ_ASSIGN_OR_RETURN(const auto client, Connect(command));
  FQ_ASSIGN_OR_RETURN(
      const client::Verified verified,
      client->Verify(flags.namespace_name, std::max(command.deadline(), kVerifyDeadline)));
  command.Show({{"blocks", verified.blocks},
                {"checked_bytes", verified.bytes},
                {"failed", verified.failed}});
  return verified.failed == 0 ? ExitCode::kOk : ExitCode::kData;
}

}  // namespace

void AddVerify(CLI::App& app, Command& command) {
  const auto flags = std::make_shared<VerifyFlags>();
  CLI::App& verb = AddVerb(app, command, "verify",
                           "Check every block that the node holds and drop those that fail; exit "
                           "code 5 when any does; waits at least 30 s (RPC Admin.Verify)",
                           flags, RunVerify);
  AddFlag(verb, "namespace", flags->namespace_name, "only this namespace");
}

}  // namespace fq::cli
