// What all verbs share: the flags that every verb takes, and where the verb chosen on the command
// line puts what it will do. One thread.
#pragma once

#include <CLI/CLI.hpp>
#include <cctype>
#include <functional>
#include <map>
#include <memory>
#include <ostream>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/cli/exit_code.h"
#include "client/cli/output.h"
#include "client/cpp/client.h"

namespace fq::cli {

struct Command {
  std::string endpoint = client::kDefaultEndpoint;
  std::string tls_ca, tls_cert, tls_key;  // files
  uint32_t deadline_ms = 2000;
  OutputFormat format = OutputFormat::kTable;
  std::ostream* out = nullptr;

  // Set by the verb that was chosen.
  std::function<absl::StatusOr<ExitCode>(Command&)> run;

  absl::Duration deadline() const { return absl::Milliseconds(deadline_ms); }
  void Show(const Json& result) const { Print(result, format, *out); }
};

// --name, also taken from FQCTL_NAME in the environment.
template <typename Value>
CLI::Option* AddFlag(CLI::App& app, const std::string& name, Value& value,
                     const std::string& help) {
  std::string variable = "FQCTL_";
  for (char c : name) variable += c == '-' ? '_' : static_cast<char>(std::toupper(c));
  return app.add_option("--" + name, value, help)->envname(variable)->capture_default_str();
}

// What --profile and --floor take.
inline CLI::IsMember AnyProfile() {
  return CLI::IsMember({"exact", "near-lossless", "compact", "universal"});
}
inline CLI::IsMember AnyFloor() { return CLI::IsMember({"exact", "near-lossless", "compact"}); }

// A verb, whose `flags` live as long as the app.
template <typename Flags>
CLI::App& AddVerb(CLI::App& parent, Command& command, const std::string& name,
                  const std::string& help, const std::shared_ptr<Flags>& flags,
                  absl::StatusOr<ExitCode> (*run)(Command&, Flags&)) {
  CLI::App& verb = *parent.add_subcommand(name, help);
  verb.callback([&command, flags, run] {
    command.run = [flags, run](Command& c) { return run(c, *flags); };
  });
  return verb;
}

// The flags of every verb: --endpoint and so on.
void AddConnectionFlags(CLI::App& app, Command& command);

// InvalidArgument: the endpoint makes no sense, or a TLS file cannot be read. Connects with the
// first call.
absl::StatusOr<std::unique_ptr<client::Client>> Connect(const Command& command);

// One file per verb.
void AddStatus(CLI::App& app, Command& command);
void AddPut(CLI::App& app, Command& command);
void AddGet(CLI::App& app, Command& command);
void AddLookup(CLI::App& app, Command& command);
void AddFetch(CLI::App& app, Command& command);
void AddVerify(CLI::App& app, Command& command);
void AddNamespace(CLI::App& app, Command& command);
void AddStats(CLI::App& app, Command& command);
void AddTop(CLI::App& app, Command& command);
void AddBench(CLI::App& app, Command& command);

}  // namespace fq::cli
