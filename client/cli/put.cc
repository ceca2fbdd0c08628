// fqctl put: store the pages of a prefix from a file.
#include <map>

#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "client/cli/files.h"
#include "client/cli/page_transfer.h"
#include "client/cli/session_flags.h"
#include "kernels/base/status_macros.h"

namespace fq::cli {
namespace {

struct PutFlags {
  SessionFlags session;
  PrefixFlags prefix;
  std::string file;
  std::string profile = "near-lossless";
};

absl::Span<const std::byte> AsBytes(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

absl::StatusOr<ExitCode> RunPut(Command& command, PutFlags& flags) {
  FQ_ASSIGN_OR_RETURN(const auto profile, client::ProfileOf(flags.profile));
  FQ_ASSIGN_OR_RETURN(const auto tokens, flags.prefix.Tokens());
  FQ_ASSIGN_OR_RETURN(const std::string pages, ReadFile("file", flags.file));
  FQ_ASSIGN_OR_RETURN(const auto client, Connect(command));
  FQ_ASSIGN_OR_RETURN(const auto spec, flags.session.Spec(*client, command));
  FQ_ASSIGN_OR_RETURN(const auto session, client->Open(spec, command.deadline()));
  const auto keys = client::KeysOf(session->Chain(flags.prefix.salt), tokens);
  FQ_ASSIGN_OR_RETURN(const auto transfer, PageTransfer::Create(*session, command.deadline()));
  if (pages.size() != keys.size() * transfer->block_bytes()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--file = ", flags.file, " has ", pages.size(), " bytes; ", keys.size(), " blocks of ",
        transfer->block_bytes(), " bytes are ", keys.size() * transfer->block_bytes()));
  }
  FQ_ASSIGN_OR_RETURN(const auto statuses, transfer->Store(profile, keys, AsBytes(pages)));
  std::map<client::BlockStatus, uint64_t> count;
  for (client::BlockStatus status : statuses) ++count[status];
  const uint64_t stored = count[client::BlockStatus::kOk];
  const uint64_t existed = count[client::BlockStatus::kExists];
  command.Show({{"blocks", keys.size()},
                {"stored", stored},
                {"existed", existed},
                {"full", count[client::BlockStatus::kFull]},
                {"raw_bytes", pages.size()}});
  return stored + existed == keys.size() ? ExitCode::kOk : ExitCode::kExhausted;
}

}  // namespace

void AddPut(CLI::App& app, Command& command) {
  const auto flags = std::make_shared<PutFlags>();
  CLI::App& verb =
      AddVerb(app, command, "put",
              "Store the pages of a prefix from a file; exit code 6 when some found no room (RPCs "
              "KvCache.Session, KvCache.Store)",
              flags, RunPut);
  flags->session.Add(verb);
  flags->prefix.Add(verb);
  AddFlag(verb, "profile", flags->profile, "how the pages are stored")->check(AnyProfile());
  AddFlag(verb, "file", flags->file,
          "pages as [block][layer][head][K|V][64][head_size] in the namespace's dtype")
      ->required();
}

}  // namespace fq::cli
