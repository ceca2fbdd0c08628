#include <utility>

#include "client/cli/command.h"
#include "client/cli/files.h"
#include "kernels/base/status_macros.h"

namespace fq::cli {
namespace {

absl::StatusOr<std::string> ReadOptional(absl::string_view flag, const std::string& path) {
  if (path.empty()) return std::string();
  return ReadFile(flag, path);
}

}  // namespace

void AddConnectionFlags(CLI::App& app, Command& command) {
  AddFlag(app, "endpoint", command.endpoint, "the node: unix:///path of its socket, or host:port");
  AddFlag(app, "tls-ca", command.tls_ca, "PEM roots that the node's certificate must chain to");
  AddFlag(app, "tls-cert", command.tls_cert, "PEM certificate that says who we are");
  AddFlag(app, "tls-key", command.tls_key, "its PEM private key");
  AddFlag(app, "deadline-ms", command.deadline_ms, "how long each call may take")
      ->check(CLI::Range(1u, 3'600'000u));
  app.add_option_function<std::string>(
         "-o,--output",
         [&command](const std::string& name) {
           command.format = name == "json" ? OutputFormat::kJson : OutputFormat::kTable;
         },
         "how results are printed; json: one line each")
      ->envname("FQCTL_OUTPUT")
      ->default_str("table")
      ->check(CLI::IsMember({"table", "json"}));
}

absl::StatusOr<std::unique_ptr<client::Client>> Connect(const Command& command) {
  client::ClientOptions options;
  options.endpoint = command.endpoint;
  options.deadline = command.deadline();
  options.client_name = "fqctl";
  FQ_ASSIGN_OR_RETURN(options.tls.ca, ReadOptional("tls-ca", command.tls_ca));
  FQ_ASSIGN_OR_RETURN(options.tls.cert, ReadOptional("tls-cert", command.tls_cert));
  FQ_ASSIGN_OR_RETURN(options.tls.key, ReadOptional("tls-key", command.tls_key));
  return client::Client::Create(options);
}

}  // namespace fq::cli
