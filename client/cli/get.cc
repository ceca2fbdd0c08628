// fqctl get: load the pages of a prefix into a file.
#include <algorithm>

#include "client/cli/command.h"
#include "client/cli/files.h"
#include "client/cli/page_transfer.h"
#include "client/cli/session_flags.h"
#include "kernels/base/status_macros.h"

namespace fq::cli {
namespace {

struct GetFlags {
  SessionFlags session;
  PrefixFlags prefix;
  std::string file;
  std::string floor = "compact";
};

// Blocks before the first that was not delivered: a prefix with a hole is no prefix.
size_t DeliveredPrefix(const std::vector<client::BlockStatus>& statuses) {
  return std::find_if(statuses.begin(), statuses.end(),
                      [](client::BlockStatus s) { return s != client::BlockStatus::kOk; }) -
         statuses.begin();
}

absl::StatusOr<ExitCode> RunGet(Command& command, GetFlags& flags) {
  FQ_ASSIGN_OR_RETURN(const auto floor, client::ProfileOf(flags.floor));
  FQ_ASSIGN_OR_RETURN(const auto tokens, flags.prefix.Tokens());
  FQ_ASSIGN_OR_RETURN(const auto client, Connect(command));
  FQ_ASSIGN_OR_RETURN(const auto spec, flags.session.Spec(*client, command));
  FQ_ASSIGN_OR_RETURN(const auto session, client->Open(spec, command.deadline()));
  const auto keys = client::KeysOf(session->Chain(flags.prefix.salt), tokens);
  FQ_ASSIGN_OR_RETURN(const auto transfer, PageTransfer::Create(*session, command.deadline()));
  client::LookupCall lookup;
  lookup.keys = keys;
  lookup.floor = floor;
  const client::Match match = session->Lookup(lookup);
  FQ_RETURN_IF_ERROR(match.node);
  size_t loaded = 0;
  std::vector<std::byte> pages(match.matched_blocks * transfer->block_bytes());
  if (match.matched_blocks > 0) {
    FQ_ASSIGN_OR_RETURN(const auto statuses,
                        transfer->Load(match.lease, floor, absl::MakeSpan(pages)));
    loaded = DeliveredPrefix(statuses);
    pages.resize(loaded * transfer->block_bytes());
    FQ_RETURN_IF_ERROR(WriteFile("file", flags.file, pages));
  }
  command.Show({{"blocks", keys.size()},
                {"matched_blocks", match.matched_blocks},
                {"usable_blocks", match.usable_blocks},
                {"loaded_blocks", loaded},
                {"written_bytes", pages.size()}});
  if (loaded < match.matched_blocks) return ExitCode::kData;
  return loaded == keys.size() ? ExitCode::kOk : ExitCode::kNotFound;
}

}  // namespace

void AddGet(CLI::App& app, Command& command) {
  const auto flags = std::make_shared<GetFlags>();
  CLI::App& verb =
      AddVerb(app, command, "get",
              "Load the pages of a prefix into a file, as far as the node has it; exit code 2 "
              "unless all of it, 5 when a block was not delivered (RPCs KvCache.Session, "
              "KvCache.Lookup, KvCache.Load)",
              flags, RunGet);
  flags->session.Add(verb);
  flags->prefix.Add(verb);
  AddFlag(verb, "floor", flags->floor, "least precision wanted")->check(AnyFloor());
  AddFlag(verb, "file", flags->file, "where the pages go, as put reads them")->required();
}

}  // namespace fq::cli
