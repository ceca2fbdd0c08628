// fqctl fetch: have the node fetch a prefix from another one.
#include <map>

#include "client/cli/command.h"
#include "client/cli/session_flags.h"
#include "kernels/base/status_macros.h"

namespace fq::cli {
namespace {

using client::BlockStatus;

struct FetchFlags {
  SessionFlags session;
  PrefixFlags prefix;
  std::string from;
  std::string floor = "compact";
};

using Counts = std::map<BlockStatus, uint64_t>;

// The worst that happened to a block, or what stopped it.
ExitCode CodeOf(Counts& count, const client::Fetched& fetched) {
  if (count[BlockStatus::kRefused] > 0) return ExitCode::kData;
  if (count[BlockStatus::kFull] > 0) return ExitCode::kExhausted;
  const uint64_t here = count[BlockStatus::kOk] + count[BlockStatus::kExists];
  if (here == fetched.statuses.size()) return ExitCode::kOk;
  return fetched.stopped.ok() ? ExitCode::kNotFound : ExitCodeOf(fetched.stopped);
}

absl::StatusOr<ExitCode> RunFetch(Command& command, FetchFlags& flags) {
  client::FetchCall call;
  call.node = flags.from;
  call.deadline = command.deadline();
  FQ_ASSIGN_OR_RETURN(call.floor, client::ProfileOf(flags.floor));
  FQ_ASSIGN_OR_RETURN(const auto tokens, flags.prefix.Tokens());
  FQ_ASSIGN_OR_RETURN(const auto client, Connect(command));
  FQ_ASSIGN_OR_RETURN(const auto spec, flags.session.Spec(*client, command));
  FQ_ASSIGN_OR_RETURN(const auto session, client->Open(spec, command.deadline()));
  const auto keys = client::KeysOf(session->Chain(flags.prefix.salt), tokens);
  call.keys = keys;
  FQ_ASSIGN_OR_RETURN(const client::Fetched fetched, session->Fetch(call));
  Counts count;
  for (BlockStatus status : fetched.statuses) ++count[status];
  command.Show({{"blocks", keys.size()},
                {"fetched", count[BlockStatus::kOk]},
                {"existed", count[BlockStatus::kExists]},
                {"missing", count[BlockStatus::kMiss]},
                {"below_floor", count[BlockStatus::kBelowFloor]},
                {"full", count[BlockStatus::kFull]},
                {"refused", count[BlockStatus::kRefused]},
                {"stopped", std::string(fetched.stopped.message())}});
  return CodeOf(count, fetched);
}

}  // namespace

void AddFetch(CLI::App& app, Command& command) {
  const auto flags = std::make_shared<FetchFlags>();
  CLI::App& verb = AddVerb(
      app, command, "fetch",
      "Have the node fetch a prefix from another node; exit code 2 unless all of it is here "
      "then, 5 when a block came damaged, 6 when some found no room, others by what was wrong "
      "with the other node (RPCs KvCache.Session, KvCache.Fetch)",
      flags, RunFetch);
  flags->session.Add(verb);
  flags->prefix.Add(verb);
  AddFlag(verb, "from", flags->from,
          "the other node, as the node's --fetch-from names it: unix:///path or host:port")
      ->required();
  AddFlag(verb, "floor", flags->floor, "least precision wanted")->check(AnyFloor());
}

}  // namespace fq::cli
