// fqctl namespace list, show, purge.
#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "kernels/base/status_macros.h"

namespace fq::cli {
namespace {

constexpr uint64_t kFewest = 8;  // QualityWindow::kFewest of the node: no drift before

struct NamespaceFlags {
  std::string name;
  bool yes = false;
};

std::string Hex(absl::string_view bytes) { return absl::BytesToHexString(bytes); }

Json LossJson(const client::Loss& loss) {
  return {{"perplexity_excess_percent", loss.perplexity_excess_percent},
          {"standard_error_percent", loss.standard_error_percent},
          {"kl_divergence", loss.kl_divergence},
          {"top1_agreement_percent", loss.top1_agreement_percent},
          {"bits_per_value", loss.bits_per_value},
          {"tokens", loss.tokens},
          {"text", loss.text}};
}

Json LossByLengthJson(const client::NamespaceInfo& info) {
  Json rows = Json::array();
  for (const client::LossAtLength& entry : info.loss_by_length) {
    Json row = {{"profile", entry.profile}};
    row.update(LossJson(entry.loss));
    rows.push_back(row);
  }
  return rows;
}

// By profile; null in place of a ratio that the node does not know.
Json QualityJson(const client::NamespaceInfo& info) {
  Json result = Json::object();
  for (const client::MeasuredQuality& one : info.quality) {
    const char* state = !info.has_expected_error ? "no expectation in the codec set"
                        : one.samples == 0       ? "no sample yet"
                        : one.drift              ? "drift"
                        : one.samples < kFewest  ? "too few samples to tell"
                                                 : "as calibrated";
    result[one.profile] = {{"state", state},
                           {"error_ratio", one.samples == 0 ? Json() : Json(one.error_ratio)},
                           {"samples", one.samples},
                           {"drift", one.drift}};
  }
  return result;
}

Json DescriptorJson(const client::Descriptor& d) {
  return {{"model", d.model},         {"weights_digest", d.weights_digest},
          {"layers", d.layers},       {"kv_heads", d.kv_heads},
          {"head_size", d.head_size}, {"dtype", std::string(client::Name(d.dtype))},
          {"rope", d.rope},           {"codec_set_id", Hex(d.codec_set_id)},
          {"extra", Json(d.extra)}};
}

Json RowJson(const client::NamespaceInfo& info) {
  const double ratio = static_cast<double>(info.raw_bytes) / std::max<double>(1, info.stored_bytes);
  return {{"name", info.name},           {"model", info.descriptor.model},
          {"blocks", info.blocks},       {"stored_bytes", info.stored_bytes},
          {"raw_bytes", info.raw_bytes}, {"ratio", info.blocks == 0 ? 0 : ratio}};
}

absl::StatusOr<ExitCode> RunList(Command& command, NamespaceFlags&) {
  FQ_ASSIGN_OR_RETURN(const auto client, Connect(command));
  FQ_ASSIGN_OR_RETURN(const auto infos, client->Namespaces("", command.deadline()));
  Json rows = Json::array();
  for (const client::NamespaceInfo& info : infos) rows.push_back(RowJson(info));
  command.Show(rows);
  return ExitCode::kOk;
}

absl::StatusOr<ExitCode> RunShow(Command& command, NamespaceFlags& flags) {
  FQ_ASSIGN_OR_RETURN(const auto client, Connect(command));
  FQ_ASSIGN_OR_RETURN(const auto infos, client->Namespaces(flags.name, command.deadline()));
  if (infos.empty()) return absl::NotFoundError(absl::StrCat("no namespace '", flags.name, "'"));
  const client::NamespaceInfo& info = infos.front();
  Json result = RowJson(info);
  result["fingerprint"] = Hex(absl::string_view(
      reinterpret_cast<const char*>(info.fingerprint.data()), info.fingerprint.size()));
  result["descriptor"] = DescriptorJson(info.descriptor);
  result["blocks_by_profile"] = Json(info.blocks_by_profile);
  result["calibrated_tokens"] = info.calibrated_tokens;
  Json loss = Json::object();
  if (info.near_lossless) loss["near-lossless"] = LossJson(*info.near_lossless);
  if (info.compact) loss["compact"] = LossJson(*info.compact);
  result["measured_loss"] = loss;
  result["loss_by_length"] = LossByLengthJson(info);
  result["quality"] = QualityJson(info);
  command.Show(result);
  return ExitCode::kOk;
}

absl::StatusOr<ExitCode> RunPurge(Command& command, NamespaceFlags& flags) {
  if (!flags.yes) {
    return absl::InvalidArgumentError(
        absl::StrCat("purge forgets all blocks of '", flags.name, "'; say --yes"));
  }
  FQ_ASSIGN_OR_RETURN(const auto client, Connect(command));
  FQ_ASSIGN_OR_RETURN(const client::Purged purged, client->Purge(flags.name, command.deadline()));
  command.Show({{"blocks", purged.blocks}, {"purged_bytes", purged.bytes}});
  return ExitCode::kOk;
}

}  // namespace

void AddNamespace(CLI::App& app, Command& command) {
  CLI::App& verb = *app.add_subcommand(
      "namespace", "Namespaces of the caller's tenant (RPCs Admin.Namespaces, Admin.Purge)");
  verb.require_subcommand(1);
  const auto flags = std::make_shared<NamespaceFlags>();
  AddVerb(verb, command, "list", "All namespaces (RPC Admin.Namespaces)", flags, RunList);
  CLI::App& show = AddVerb(
      verb, command, "show",
      "One namespace: the loss that its codec set was measured at, and the error of what the node "
      "encoded lately over what the codec set predicts (RPC Admin.Namespaces)",
      flags, RunShow);
  show.add_option("NAME", flags->name)->required();
  CLI::App& purge =
      AddVerb(verb, command, "purge", "Forget all unleased blocks of a namespace (RPC Admin.Purge)",
              flags, RunPurge);
  purge.add_option("NAME", flags->name)->required();
  purge.add_flag("--yes", flags->yes, "required: there is no way back");
}

}  // namespace fq::cli
