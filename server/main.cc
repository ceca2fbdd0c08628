// flashquantd: reads the options, serves until SIGTERM or SIGINT, drains.
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "server/log.h"
#include "server/malloc_tuning.h"
#include "server/options.h"
#include "server/server.h"

extern char** environ;

namespace fq {
namespace {

constexpr int kExitOk = 0;
constexpr int kExitFailure = 1;
constexpr int kExitUsage = 2;

// Blocked in every thread, so that only WaitForStop takes them.
sigset_t BlockStopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  return signals;
}

int WaitForStop(const sigset_t& signals) {
  int number = 0;
  while (sigwait(&signals, &number) != 0) {
  }
  return number;
}

// What the process needs whatever its options: page bytes belong in no core file, sockets to nobody
// else. Debian's Abseil looks for deadlocks whenever a Mutex is locked, under one lock for all of
// them: that is for tests.
void PrepareProcess(const Log& log) {
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  const rlimit no_core{0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  umask(0077);
  if (absl::Status tuned = TuneMalloc(); !tuned.ok()) {
    log.Write(LogLevel::kWarning, "malloc_not_tuned", {{"reason", std::string(tuned.message())}});
  }
}

int Serve(const Options& options) {
  const auto log =
      Log::ToStderr(LogLevelFromName(options.log_level),
                    options.log_format == "json" ? LogFormat::kJson : LogFormat::kText);
  PrepareProcess(*log);
  const sigset_t signals = BlockStopSignals();
  NodeParts parts;
  parts.log = log.get();
  auto server = Server::Start(options, std::move(parts));
  if (!server.ok()) {
    log->Write(LogLevel::kError, "start_failed",
               {{"reason", std::string(server.status().message())}});
    return kExitFailure;
  }
  log->Write(LogLevel::kInfo, "serving",
             {{"version", FQ_VERSION},
              {"socket", options.socket},
              {"tcp_port", absl::StrCat((*server)->tcp_port())},
              {"metrics_port", absl::StrCat((*server)->metrics_port())},
              {"host_bytes", absl::StrCat(options.host_bytes)},
              {"workers", absl::StrCat((*server)->node().workers().workers())}});
  const int signal_number = WaitForStop(signals);
  log->Write(LogLevel::kInfo, "draining", {{"signal", absl::StrCat(signal_number)}});
  (*server)->BeginDrain();
  const bool clean = (*server)->FinishDrain();
  log->Write(LogLevel::kInfo, "stopped", {{"all_calls_finished", clean ? "yes" : "no"}});
  return kExitOk;
}

int Main(int argc, char** argv) {
  std::vector<std::string> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) environment.emplace_back(*entry);
  auto line = ParseCommandLine(std::vector<std::string>(argv + 1, argv + argc), environment);
  if (!line.ok()) {
    std::fprintf(stderr, "flashquantd: %s\n", std::string(line.status().message()).c_str());
    return kExitUsage;
  }
  switch (line->action) {
    case CommandLine::Action::kPrintText:
      std::fputs(line->text.c_str(), stdout);
      return kExitOk;
    case CommandLine::Action::kPrintConfig:
      std::fputs(PrintConfig(line->options).c_str(), stdout);
      return kExitOk;
    case CommandLine::Action::kServe:
      return Serve(line->options);
  }
  return kExitFailure;
}

}  // namespace
}  // namespace fq

int main(int argc, char** argv) { return fq::Main(argc, argv); }
