// fqctl lookup: how much of a prefix the node has.
#include "client/cli/command.h"
#include "client/cli/session_flags.h"
#include "kernels/base/status_macros.h"

namespace fq::cli {
namespace {

struct LookupFlags {
  SessionFlags session;
  PrefixFlags prefix;
  std::string floor = "compact";
};

Json MatchJson(const client::Match& match, size_t blocks) {
  uint64_t stored_bytes = 0;
  std::map<std::string, uint64_t> by_profile;
  for (uint64_t bytes : match.stored_bytes) stored_bytes += bytes;
  for (client::Profile profile : match.profiles) ++by_profile[std::string(client::Name(profile))];
  return {{"blocks", blocks},
          {"matched_blocks", match.matched_blocks},
          {"usable_blocks", match.usable_blocks},
          {"matched_tokens", match.matched_blocks * client::kBlockTokens},
          {"stored_bytes", stored_bytes},
          {"load_bytes", match.load_bytes},
          {"predicted_load_ms", match.predicted_load_ms},
          {"blocks_by_profile", Json(by_profile)}};
}

absl::StatusOr<ExitCode> RunLookup(Command& command, LookupFlags& flags) {
  FQ_ASSIGN_OR_RETURN(const auto floor, client::ProfileOf(flags.floor));
  FQ_ASSIGN_OR_RETURN(const auto tokens, flags.prefix.Tokens());
  FQ_ASSIGN_OR_RETURN(const auto client, Connect(command));
  FQ_ASSIGN_OR_RETURN(const auto spec, flags.session.Spec(*client, command));
  FQ_ASSIGN_OR_RETURN(const auto session, client->Open(spec, command.deadline()));
  const auto keys = client::KeysOf(session->Chain(flags.prefix.salt), tokens);
  client::LookupCall call;
  call.keys = keys;
  call.floor = floor;
  call.lease = client::LookupCall::Lease::kNone;
  const client::Match match = session->Lookup(call);
  FQ_RETURN_IF_ERROR(match.node);
  command.Show(MatchJson(match, keys.size()));
  return match.matched_blocks == keys.size() ? ExitCode::kOk : ExitCode::kNotFound;
}

}  // namespace

void AddLookup(CLI::App& app, Command& command) {
  const auto flags = std::make_shared<LookupFlags>();
  CLI::App& verb = AddVerb(app, command, "lookup",
                           "How much of a prefix the node has; exit code 2 unless all of it (RPC "
                           "KvCache.Lookup)",
                           flags, RunLookup);
  flags->session.Add(verb);
  flags->prefix.Add(verb);
  AddFlag(verb, "floor", flags->floor, "least precision wanted")->check(AnyFloor());
}

}  // namespace fq::cli
