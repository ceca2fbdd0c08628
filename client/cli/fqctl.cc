#include "client/cli/fqctl.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "client/cpp/retry_after.h"

namespace fq::cli {
namespace {

void AddVerbs(CLI::App& app, Command& command) {
  AddConnectionFlags(app, command);
  AddStatus(app, command);
  AddPut(app, command);
  AddGet(app, command);
  AddLookup(app, command);
  AddFetch(app, command);
  AddVerify(app, command);
  AddNamespace(app, command);
  AddStats(app, command);
  AddTop(app, command);
  AddBench(app, command);
}

void Explain(const absl::Status& status, std::ostream& errors) {
  errors << "fqctl: " << status.message();
  if (const auto wait = client::RetryAfter(status)) {
    errors << "; try again in " << absl::FormatDuration(*wait);
  }
  errors << " (" << absl::StatusCodeToString(status.code()) << ")\n";
}

// CLI11 misses a verb or flag before it says that it does not know what is there instead.
absl::Status Missing(const CLI::App& app, const CLI::RequiredError& error) {
  const std::vector<std::string> unknown = app.remaining(true);
  if (unknown.empty())
    return absl::InvalidArgumentError(absl::StrCat(error.what(), "; see --help"));
  return absl::InvalidArgumentError(
      absl::StrCat("'", unknown.front(), "' is not known here; see --help"));
}

}  // namespace

ExitCode Run(const std::vector<std::string>& arguments, std::ostream& out, std::ostream& errors) {
  CLI::App app("fqctl: look after a FlashQuant node and its pages.", "fqctl");
  app.footer(std::string("Every flag can come from the environment as FQCTL_<FLAG>.\n") +
             kExitCodeHelp);
  app.set_version_flag("--version", "fqctl " FQ_VERSION);
  app.require_subcommand(1);
  app.fallthrough();
  Command command;
  command.out = &out;
  AddVerbs(app, command);
  try {
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::RequiredError& error) {
    Explain(Missing(app, error), errors);
    return ExitCode::kUsage;
  } catch (const CLI::ParseError& error) {
    return app.exit(error, out, errors) == 0 ? ExitCode::kOk : ExitCode::kUsage;
  }
  const absl::StatusOr<ExitCode> code = command.run(command);
  if (code.ok()) return *code;
  Explain(code.status(), errors);
  return ExitCodeOf(code.status());
}

}  // namespace fq::cli
