#include "server/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <fstream>
#include <map>
#include <sstream>
#include <system_error>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "kernels/base/status_macros.h"
#include "server/byte_size.h"
#include "server/host_port.h"

namespace fq {
namespace {

constexpr int64_t kMaxConfigBytes = 1 << 20;
constexpr size_t kMaxSocketPath = 100;  // sockaddr_un holds 107; the sockets beside it add ".call"

// Of ForEachOption: other nodes.
template <typename O, typename Visitor>
void ForEachOptionOfNodes(O& o, Visitor&& visit) {
  visit("fetch-from", o.fetch_from,
        "another node that callers may have blocks fetched from, unix:///path or host:port; "
        "plaintext to loopback only; may be repeated, or a list with commas; none: no Fetch");
  visit("fetch-tls-ca", o.fetch_tls_ca,
        "PEM roots of the nodes of --fetch-from; set: TLS to all that are host:port");
  visit("fetch-tls-cert", o.fetch_tls_cert, "PEM certificate that this node shows to them");
  visit("fetch-tls-key", o.fetch_tls_key, "PEM private key of --fetch-tls-cert");
  visit("max-fetches", o.max_fetches,
        "fetches under way, and as many that wait; each takes up to --max-inline-bytes");
  visit(
      "fetch-link-bytes", o.fetch_link_bytes,
      "a fetch of so many bytes or more goes GPU to GPU where both nodes have --nccl, which takes "
      "a while to connect; e.g. 256MiB");
  visit("trusted-node", o.trusted_nodes,
        "name, in a client certificate, of a node that may read blocks for whichever tenant it "
        "names; may be repeated, or a list with commas");
}

// Calls visit(name, field, help) for every option: the one list of them.
template <typename O, typename Visitor>
void ForEachOption(O& o, Visitor&& visit) {
  visit("socket", o.socket,
        "Unix socket for gRPC; beside it .call and .seg take calls and segments; empty: none");
  visit("socket-mode", o.socket_mode, "octal mode of these sockets");
  visit("listen", o.listen, "TCP host:port for gRPC; loopback only without TLS; empty: none");
  visit("tls-cert", o.tls_cert, "PEM certificate chain of --listen");
  visit("tls-key", o.tls_key, "PEM private key of --listen");
  visit("tls-client-ca", o.tls_client_ca,
        "PEM roots: clients must show a certificate; it names their tenant");
  visit("metrics-listen", o.metrics_listen, "host:port for Prometheus, /metrics; empty: none");
  visit("tenant", o.tenant, "tenant of local callers");
  ForEachOptionOfNodes(o, visit);
  visit("codec-set", o.codec_sets,
        "codec-set file (.fqcs); may be repeated, or a list with commas");
  visit("host-bytes", o.host_bytes, "memory for slabs, e.g. 4GiB");
  visit("device", o.device, "GPU to work on, by CUDA's number of it; empty: none");
  visit("device-bytes", o.device_bytes, "memory of --device for slabs, taken at start, e.g. 8GiB");
  visit("device-sm-percent", o.device_sm_percent,
        "share of the multiprocessors of --device that stores may use; loads go first anyway");
  visit("nccl", o.nccl,
        "NCCL library, e.g. libnccl.so.2 or a path of it, for workers on other GPUs than --device; "
        "its sockets are open to the network, unencrypted: trusted networks only; empty: none");
  visit("nccl-ctas", o.nccl_ctas,
        "multiprocessors that one direction of a peer link may take, on both GPUs");
  visit("max-peer-links", o.max_peer_links, "peer links of all sessions");
  visit("peer-window-bytes", o.peer_window_bytes,
        "memory of --device for the windows of all peer links, beside --device-bytes, e.g. 8GiB");
  visit("peer-timeout-ms", o.peer_timeout_ms,
        "longest time that an operation of a peer link may take; then the link is broken");
  visit("quality-sample", o.quality_sample,
        "measure the error of one encoded block in so many against what its codec set predicts; "
        "0: none");
  visit("quality-drift-ratio", o.quality_drift_ratio,
        "measured over predicted error from which traffic does not fit its codec set");
  visit("workers", o.workers, "threads that encode and decode; 0: one per processor");
  visit("queue-depth", o.queue_depth, "calls that may wait for a worker");
  visit("max-connections", o.max_connections,
        "connections to --socket and --listen together; floods take at most 0.5 MiB for each");
  visit("max-sessions", o.max_sessions, "open sessions");
  visit("max-leases-per-session", o.max_leases_per_session, "leases a session may hold");
  visit("max-blocks-per-call", o.max_blocks_per_call,
        "blocks of one Store, Lookup, Load or Attend");
  visit("max-namespaces", o.max_namespaces, "namespaces of all tenants");
  visit("max-ranges-per-namespace", o.max_ranges_per_namespace,
        "layer and head ranges in one namespace");
  visit("max-segments", o.max_segments, "memory segments of one session");
  visit("max-segment-bytes", o.max_segment_bytes, "size of one memory segment, e.g. 64GiB");
  visit("max-inline-bytes", o.max_inline_bytes, "page bytes inside one message, e.g. 16MiB");
  visit("max-message-bytes", o.max_message_bytes,
        "bytes of requests that are not answered, and of inline replies that are not taken, each");
  visit("lease-ms", o.lease_ms, "life of a lease after its last use");
  visit("default-deadline-ms", o.default_deadline_ms, "deadline of a call that brings none");
  visit("max-deadline-ms", o.max_deadline_ms, "longest deadline that is honoured");
  visit("drain-ms", o.drain_ms, "time for running calls after SIGTERM or SIGINT");
  visit("log-level", o.log_level, "debug, info, warning or error");
  visit("log-format", o.log_format, "text or json");
}

using Values = std::map<std::string, std::vector<std::string>>;  // by option name

std::string EnvironmentName(const std::string& option) {
  return "FQ_" + absl::StrReplaceAll(absl::AsciiStrToUpper(option), {{"-", "_"}});
}

// Turns "4GiB" into the digits of its bytes; returns what is wrong with it, for CLI11.
std::string BytesFromSize(std::string& text) {
  const absl::StatusOr<uint64_t> bytes = ParseByteSize(text);
  if (!bytes.ok()) return std::string(bytes.status().message());
  text = absl::StrCat(*bytes);
  return std::string();
}

// Adds options to a parser and remembers nothing else.
class OptionAdder {
 public:
  explicit OptionAdder(CLI::App& app) : app_(app) {}
  void operator()(const std::string& name, std::string& field, const char* help) const {
    Finish(app_.add_option("--" + name, field, help), name);
  }
  void operator()(const std::string& name, std::vector<std::string>& field,
                  const char* help) const {
    app_.add_option("--" + name, field, Help(name, help))->delimiter(',')->take_all();
  }
  void operator()(const std::string& name, uint32_t& field, const char* help) const {
    Finish(app_.add_option("--" + name, field, help), name);
  }
  void operator()(const std::string& name, double& field, const char* help) const {
    Finish(app_.add_option("--" + name, field, help), name);
  }
  void operator()(const std::string& name, uint64_t& field, const char* help) const {
    Finish(
        app_.add_option("--" + name, field, help)->transform(CLI::Validator(BytesFromSize, "SIZE")),
        name);
  }

 private:
  static std::string Help(const std::string& name, const char* help) {
    return absl::StrCat(help, " [", EnvironmentName(name), "]");
  }
  void Finish(CLI::Option* option, const std::string& name) const {
    option->description(Help(name, option->get_description().c_str()));
    option->take_last()->capture_default_str();
  }
  CLI::App& app_;
};

// Names of the options that the command line sets.
Values FlagsGiven(absl::Span<const std::string> args) {
  Values given;
  for (const std::string& arg : args) {
    if (arg.rfind("--", 0) == 0) given[arg.substr(2, arg.find('=') - 2)];
  }
  return given;
}

Values ReadEnvironment(absl::Span<const std::string> environment) {
  std::map<std::string, std::string> names{{"FQ_CONFIG", "config"}};
  Options options;
  ForEachOption(options, [&](const std::string& name, const auto&, const char*) {
    names[EnvironmentName(name)] = name;
  });
  Values values;
  for (const std::string& entry : environment) {
    size_t equals = entry.find('=');
    if (equals == std::string::npos) continue;
    auto it = names.find(entry.substr(0, equals));
    if (it != names.end()) values[it->second] = {entry.substr(equals + 1)};
  }
  return values;
}

// How many values the option of that name may have; 0: there is none.
size_t MostValues(const std::string& option) {
  size_t most = 0;
  Options options;
  ForEachOption(options, [&](const char* name, auto& field, const char*) {
    if (option != name) return;
    most = std::is_same_v<decltype(field), std::vector<std::string>&> ? SIZE_MAX : 1;
  });
  return most;
}

absl::Status Refuse(absl::string_view option, absl::string_view value, absl::string_view allowed) {
  return absl::InvalidArgumentError(absl::StrCat("--", option, " = ", value, ": ", allowed));
}

// One entry of the file of --config.
absl::Status CheckConfigItem(const std::string& path, const CLI::ConfigItem& item,
                             const Values& before) {
  if (!item.parents.empty()) {
    return Refuse("config", path, absl::StrCat("section [", item.parents[0], "] is not known"));
  }
  const size_t most = MostValues(item.name);
  if (most == 0) {
    return Refuse("config", path, absl::StrCat("'", item.name, "' is none of the options"));
  }
  if (item.inputs.size() > most || before.count(item.name) != 0) {
    return Refuse("config", path,
                  absl::StrCat(item.name, " = ", absl::StrJoin(item.inputs, ", "),
                               ": given twice, or several values"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Values> ReadConfigFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) {
    return Refuse("config", path,
                  absl::StrCat("cannot be read: ", std::generic_category().message(errno)));
  }
  int64_t bytes = in.tellg();
  if (bytes < 0 || bytes > kMaxConfigBytes) {
    return Refuse("config", path, absl::StrCat("has ", bytes, " bytes, at most ", kMaxConfigBytes));
  }
  in.seekg(0);
  Values values;
  try {  // CLI11 reports by exceptions; they end here
    for (CLI::ConfigItem& item : CLI::ConfigTOML().from_config(in)) {
      FQ_RETURN_IF_ERROR(CheckConfigItem(path, item, values));
      values.emplace(item.name, std::move(item.inputs));
    }
  } catch (const CLI::Error& e) {
    return Refuse("config", path, e.what());
  }
  return values;
}

// The value of --config in `args`, if any; last one wins.
std::string ConfigFlag(absl::Span<const std::string> args) {
  std::string path;
  for (size_t i = 0; i < args.size(); ++i) {
    if (args[i].rfind("--config=", 0) == 0) path = args[i].substr(9);
    if (args[i] == "--config" && i + 1 < args.size()) path = args[i + 1];
  }
  return path;
}

void AddMissing(const Values& layer, Values& given, std::vector<std::string>& args) {
  for (const auto& [name, values] : layer) {
    if (!given.emplace(name, values).second) continue;
    for (const std::string& value : values) args.push_back(absl::StrCat("--", name, "=", value));
  }
}

// `args` completed by what only the environment and the file set.
absl::StatusOr<std::vector<std::string>> MergeLayers(absl::Span<const std::string> args,
                                                     absl::Span<const std::string> environment) {
  std::vector<std::string> merged(args.begin(), args.end());
  Values given = FlagsGiven(args);
  Values from_environment = ReadEnvironment(environment);
  std::string config = ConfigFlag(args);
  if (config.empty() && from_environment.count("config") != 0) {
    config = from_environment["config"][0];
  }
  AddMissing(from_environment, given, merged);
  if (!config.empty()) {
    FQ_ASSIGN_OR_RETURN(Values from_file, ReadConfigFile(config));
    AddMissing(from_file, given, merged);
  }
  return merged;
}

// `--name=` as two arguments: CLI11 would take the next option for its value.
std::vector<std::string> WithEmptyValues(absl::Span<const std::string> args) {
  std::vector<std::string> result;
  for (const std::string& arg : args) {
    if (arg.rfind("--", 0) == 0 && arg.find('=') == arg.size() - 1) {
      result.insert(result.end(), {arg.substr(0, arg.size() - 1), ""});
    } else {
      result.push_back(arg);
    }
  }
  return result;
}

absl::Status Parse(CLI::App& app, absl::Span<const std::string> merged, CommandLine& result) {
  std::vector<std::string> args = WithEmptyValues(merged);
  std::reverse(args.begin(), args.end());  // what CLI11 expects of a vector
  try {
    app.parse(std::move(args));
  } catch (const CLI::CallForHelp&) {
    result.action = CommandLine::Action::kPrintText;
    result.text = app.help();
  } catch (const CLI::CallForVersion&) {
    result.action = CommandLine::Action::kPrintText;
    result.text = absl::StrCat("flashquantd ", FQ_VERSION, "\n");
  } catch (const CLI::ConversionError& e) {  // "Could not convert: --workers = -1"
    return absl::InvalidArgumentError(absl::StrCat(
        absl::StripPrefix(e.what(), "Could not convert: "), ": must be a number >= 0"));
  } catch (const CLI::ParseError& e) {
    return absl::InvalidArgumentError(e.what());
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status CheckBetween(absl::string_view option, T value, T least, T most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return Refuse(option, absl::StrCat(value), absl::StrCat("must be in ", least, "..", most));
}

absl::Status CheckNumbers(const Options& o) {
  FQ_RETURN_IF_ERROR(
      CheckBetween<uint64_t>("host-bytes", o.host_bytes, 1 << 20, uint64_t{1} << 46));
  FQ_RETURN_IF_ERROR(
      CheckBetween<uint64_t>("device-bytes", o.device_bytes, 64 << 20, uint64_t{1} << 46));
  FQ_RETURN_IF_ERROR(CheckBetween("device-sm-percent", o.device_sm_percent, 1u, 100u));
  FQ_RETURN_IF_ERROR(CheckBetween("nccl-ctas", o.nccl_ctas, 1u, 64u));
  FQ_RETURN_IF_ERROR(CheckBetween("max-peer-links", o.max_peer_links, 1u, 1024u));
  FQ_RETURN_IF_ERROR(CheckBetween<uint64_t>("peer-window-bytes", o.peer_window_bytes, 32 << 20,
                                            uint64_t{1} << 46));
  FQ_RETURN_IF_ERROR(CheckBetween("peer-timeout-ms", o.peer_timeout_ms, 10u, 600'000u));
  FQ_RETURN_IF_ERROR(CheckBetween("quality-sample", o.quality_sample, 0u, 1'000'000'000u));
  FQ_RETURN_IF_ERROR(CheckBetween("quality-drift-ratio", o.quality_drift_ratio, 1.05, 10.0));
  FQ_RETURN_IF_ERROR(CheckBetween("workers", o.workers, 0u, 1024u));
  FQ_RETURN_IF_ERROR(CheckBetween("queue-depth", o.queue_depth, 1u, 1u << 16));
  FQ_RETURN_IF_ERROR(CheckBetween("max-connections", o.max_connections, 1u, 1u << 14));
  FQ_RETURN_IF_ERROR(CheckBetween("max-sessions", o.max_sessions, 1u, 1u << 16));
  FQ_RETURN_IF_ERROR(
      CheckBetween("max-leases-per-session", o.max_leases_per_session, 1u, 1u << 20));
  FQ_RETURN_IF_ERROR(CheckBetween("max-blocks-per-call", o.max_blocks_per_call, 1u, 1u << 16));
  FQ_RETURN_IF_ERROR(CheckBetween("max-namespaces", o.max_namespaces, 1u, 1u << 16));
  FQ_RETURN_IF_ERROR(
      CheckBetween("max-ranges-per-namespace", o.max_ranges_per_namespace, 1u, 1u << 16));
  FQ_RETURN_IF_ERROR(CheckBetween("max-segments", o.max_segments, 1u, 4096u));
  FQ_RETURN_IF_ERROR(
      CheckBetween<uint64_t>("max-segment-bytes", o.max_segment_bytes, 4096, uint64_t{1} << 46));
  FQ_RETURN_IF_ERROR(
      CheckBetween<uint64_t>("max-inline-bytes", o.max_inline_bytes, 4096, uint64_t{1} << 30));
  FQ_RETURN_IF_ERROR(CheckBetween<uint64_t>("max-message-bytes", o.max_message_bytes,
                                            2 * o.max_inline_bytes, uint64_t{1} << 46));
  FQ_RETURN_IF_ERROR(
      CheckBetween<uint64_t>("fetch-link-bytes", o.fetch_link_bytes, 1, uint64_t{1} << 46));
  FQ_RETURN_IF_ERROR(CheckBetween("max-fetches", o.max_fetches, 1u, 64u));
  FQ_RETURN_IF_ERROR(CheckBetween("lease-ms", o.lease_ms, 10u, 86'400'000u));
  FQ_RETURN_IF_ERROR(CheckBetween("max-deadline-ms", o.max_deadline_ms, 1u, 86'400'000u));
  FQ_RETURN_IF_ERROR(
      CheckBetween("default-deadline-ms", o.default_deadline_ms, 1u, o.max_deadline_ms));
  return CheckBetween("drain-ms", o.drain_ms, 0u, 3'600'000u);
}

absl::Status CheckUnixSocket(const Options& o) {
  uint32_t mode = 0;
  if (o.socket.size() > kMaxSocketPath) {
    return Refuse("socket", o.socket,
                  absl::StrCat("has ", o.socket.size(), " bytes, at most ", kMaxSocketPath));
  }
  if (!o.socket.empty() && o.socket[0] != '/') {
    return Refuse("socket", o.socket, "must be an absolute path");
  }
  std::istringstream octal(o.socket_mode);
  if (!(octal >> std::oct >> mode) || !octal.eof() || mode > 0777 || (mode & 0600) != 0600) {
    return Refuse("socket-mode", o.socket_mode,
                  "must be octal, 0600..0777, with read and write for the owner");
  }
  return absl::OkStatus();
}

absl::Status CheckNetwork(const Options& o) {
  if (o.socket.empty() && o.listen.empty()) {
    return absl::InvalidArgumentError("--socket and --listen are both empty: nothing to serve on");
  }
  if (o.tls_cert.empty() != o.tls_key.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--tls-cert = '", o.tls_cert, "' and --tls-key = '", o.tls_key, "': give both or neither"));
  }
  if (!o.tls_client_ca.empty() && o.tls_cert.empty()) {
    return Refuse("tls-client-ca", o.tls_client_ca, "needs --tls-cert and --tls-key");
  }
  if (!o.tls_cert.empty() && o.listen.empty()) {
    return Refuse("tls-cert", o.tls_cert, "needs --listen");
  }
  if (!o.listen.empty()) {
    FQ_ASSIGN_OR_RETURN(HostPort at, ParseHostPort("listen", o.listen));
    if (!at.loopback && o.tls_cert.empty()) {
      return Refuse("listen", o.listen,
                    "not a loopback address: needs --tls-cert and --tls-key; plaintext is never "
                    "opened to the network");
    }
  }
  return o.metrics_listen.empty() ? absl::OkStatus()
                                  : ParseHostPort("metrics-listen", o.metrics_listen).status();
}

absl::Status CheckFetchFrom(const Options& o, const std::string& node) {
  if (absl::StartsWith(node, "unix:///")) return absl::OkStatus();
  FQ_ASSIGN_OR_RETURN(const HostPort at, ParseHostPort("fetch-from", node));
  if (at.loopback || !o.fetch_tls_ca.empty()) return absl::OkStatus();
  return Refuse("fetch-from", node,
                "not a loopback address: needs --fetch-tls-ca; pages never cross the network in "
                "plaintext");
}

absl::Status CheckOtherNodes(const Options& o) {
  for (const std::string& node : o.fetch_from) FQ_RETURN_IF_ERROR(CheckFetchFrom(o, node));
  if (o.fetch_tls_cert.empty() != o.fetch_tls_key.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("--fetch-tls-cert = '", o.fetch_tls_cert,
                                                   "' and --fetch-tls-key = '", o.fetch_tls_key,
                                                   "': give both or neither"));
  }
  if (!o.fetch_tls_cert.empty() && o.fetch_tls_ca.empty()) {
    return Refuse("fetch-tls-cert", o.fetch_tls_cert, "needs --fetch-tls-ca");
  }
  for (const std::string& name : o.trusted_nodes) {
    if (name.size() > 256) {
      return Refuse("trusted-node", name, absl::StrCat("has ", name.size(), " bytes, at most 256"));
    }
    if (o.tls_client_ca.empty()) return Refuse("trusted-node", name, "needs --tls-client-ca");
  }
  return absl::OkStatus();
}

absl::Status CheckNames(const Options& o) {
  uint32_t ordinal = 0;
  if (!o.device.empty() && (!absl::SimpleAtoi(o.device, &ordinal) || ordinal > 1023)) {
    return Refuse("device", o.device, "must be a number in 0..1023, or empty");
  }
  if (!o.nccl.empty() && o.device.empty()) return Refuse("nccl", o.nccl, "needs --device");
  if (o.tenant.empty() || o.tenant.size() > 256) {
    return Refuse("tenant", o.tenant,
                  absl::StrCat("has ", o.tenant.size(), " bytes, must be 1..256"));
  }
  if (o.log_level != "debug" && o.log_level != "info" && o.log_level != "warning" &&
      o.log_level != "error") {
    return Refuse("log-level", o.log_level, "must be debug, info, warning or error");
  }
  if (o.log_format != "text" && o.log_format != "json") {
    return Refuse("log-format", o.log_format, "must be text or json");
  }
  return absl::OkStatus();
}

// Writes one option as `name = value`.
struct ConfigPrinter {
  std::string& text;
  void operator()(const char* name, const std::string& value, const char*) const {
    absl::StrAppend(&text, name, " = \"", value, "\"\n");
  }
  template <typename Number>
  void operator()(const char* name, Number value, const char*) const {
    absl::StrAppend(&text, name, " = ", value, "\n");
  }
  void operator()(const char* name, const std::vector<std::string>& values, const char*) const {
    if (values.empty()) return;
    absl::StrAppend(&text, name, " = [\"", absl::StrJoin(values, "\", \""), "\"]\n");
  }
};

}  // namespace

bool Options::operator==(const Options& other) const {
  return PrintConfig(*this) == PrintConfig(other);
}

absl::StatusOr<CommandLine> ParseCommandLine(absl::Span<const std::string> args,
                                             absl::Span<const std::string> environment) {
  CommandLine result;
  CLI::App app("flashquantd: keeps compressed KV-cache pages for inference engines", "flashquantd");
  bool print_config = false;
  std::string config;  // read by MergeLayers
  app.set_version_flag("--version", "");
  app.footer(
      "A flag wins over the environment (in brackets), that over the file of --config.\n"
      "Exit codes: 0 drained and stopped, 1 this machine does not give what is needed (the log "
      "says\n"
      "what), 2 an option does not fit.");
  app.add_flag("--print-config", print_config, "print the options in force and exit");
  app.add_option("--config", config, "file of `option = value` lines [FQ_CONFIG]")->take_last();
  ForEachOption(result.options, OptionAdder(app));
  FQ_ASSIGN_OR_RETURN(std::vector<std::string> merged, MergeLayers(args, environment));
  FQ_RETURN_IF_ERROR(Parse(app, merged, result));
  if (result.action == CommandLine::Action::kPrintText) return result;
  for (auto* list :
       {&result.options.codec_sets, &result.options.fetch_from, &result.options.trusted_nodes}) {
    list->erase(std::remove(list->begin(), list->end(), ""), list->end());
  }
  FQ_RETURN_IF_ERROR(CheckOptions(result.options));
  if (print_config) result.action = CommandLine::Action::kPrintConfig;
  return result;
}

absl::Status CheckOptions(const Options& options) {
  FQ_RETURN_IF_ERROR(CheckNumbers(options));
  FQ_RETURN_IF_ERROR(CheckUnixSocket(options));
  FQ_RETURN_IF_ERROR(CheckNetwork(options));
  FQ_RETURN_IF_ERROR(CheckOtherNodes(options));
  return CheckNames(options);
}

std::string PrintConfig(const Options& options) {
  std::string text;
  ForEachOption(options, ConfigPrinter{text});
  return text;
}

uint32_t SocketModeBits(const Options& options) {
  uint32_t mode = 0;
  std::istringstream(options.socket_mode) >> std::oct >> mode;
  return mode;
}

}  // namespace fq
