// fqctl top: the node's status again and again, with rates.
#include <cmath>
#include <optional>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "client/cli/command.h"
#include "kernels/base/status_macros.h"

namespace fq::cli {
namespace {

constexpr char kClearScreen[] = "\033[H\033[2J";

struct TopFlags {
  uint32_t interval_ms = 1000;
  uint32_t count = 0;
};

struct Sample {
  client::NodeStatus status;
  absl::Time time;
};

// Counters that moved since the sample before, per second.
Json RatesJson(const Sample& before, const Sample& now) {
  const double seconds = absl::ToDoubleSeconds(now.time - before.time);
  Json rates = Json::object();
  for (const auto& [name, value] : now.status.counters) {
    const auto it = before.status.counters.find(name);
    const double moved = value - (it != before.status.counters.end() ? it->second : 0);
    if (moved != 0 && seconds > 0 && absl::StrContains(name, "_total"))
      rates[name] = moved / seconds;
  }
  return rates;
}

Json SampleJson(const std::optional<Sample>& before, const Sample& now) {
  const client::NodeStatus& status = now.status;
  Json result = {{"state", status.state},
                 {"uptime_seconds", status.uptime_seconds},
                 {"host_used_bytes", status.host_used_bytes},
                 {"host_capacity_bytes", status.host_capacity_bytes},
                 {"blocks", status.blocks},
                 {"sessions", status.sessions},
                 {"leases", status.leases}};
  result["per_second"] = before ? RatesJson(*before, now) : Json::object();
  return result;
}

absl::StatusOr<ExitCode> RunTop(Command& command, TopFlags& flags) {
  FQ_ASSIGN_OR_RETURN(const auto client, Connect(command));
  std::optional<Sample> before;
  for (uint32_t i = 0; flags.count == 0 || i < flags.count; ++i) {
    if (i > 0) absl::SleepFor(absl::Milliseconds(flags.interval_ms));
    FQ_ASSIGN_OR_RETURN(client::NodeStatus status, client->Status(command.deadline()));
    const Sample now{std::move(status), absl::Now()};
    if (command.format == OutputFormat::kTable && flags.count != 1) *command.out << kClearScreen;
    command.Show(SampleJson(before, now));
    before = now;
  }
  return ExitCode::kOk;
}

}  // namespace

void AddTop(CLI::App& app, Command& command) {
  const auto flags = std::make_shared<TopFlags>();
  CLI::App& verb =
      AddVerb(app, command, "top",
              "Status and rates of the node again and again (RPC Admin.Status)", flags, RunTop);
  AddFlag(verb, "interval-ms", flags->interval_ms, "time between two looks")
      ->check(CLI::Range(10u, 3'600'000u));
  AddFlag(verb, "count", flags->count, "looks; 0: until interrupted");
}

}  // namespace fq::cli
