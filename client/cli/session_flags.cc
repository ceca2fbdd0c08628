#include "client/cli/session_flags.h"

#include <numeric>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cli/files.h"
#include "kernels/base/status_macros.h"

namespace fq::cli {
namespace {

constexpr uint32_t kMaxBlocks = 1 << 20;

absl::Status CheckPositive(const char* flag, uint32_t value) {
  if (value > 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--", flag, " is 0; with --model it must be set"));
}

absl::Status SetRange(const char* flag, const std::vector<uint32_t>& given, uint32_t limit,
                      std::pair<uint32_t*, uint32_t*> range) {
  if (given.empty()) return absl::OkStatus();
  if (given[0] >= given[1] || given[1] > limit) {
    return absl::InvalidArgumentError(absl::StrCat("--", flag, " is ", given[0], " ", given[1],
                                                   "; must be a begin below an end of at most ",
                                                   limit));
  }
  std::tie(*range.first, *range.second) = std::pair(given[0], given[1]);
  return absl::OkStatus();
}

}  // namespace

void SessionFlags::Add(CLI::App& app) {
  AddFlag(app, "namespace", namespace_name, "namespace to work in")->required();
  AddFlag(app, "model", model,
          "identity of the model; with it the flags below describe the namespace, without it the "
          "node's own descriptor is used");
  AddFlag(app, "weights-digest", weights_digest, "digest of the weights or the revision");
  AddFlag(app, "layers", layers, "layers of the model");
  AddFlag(app, "kv-heads", kv_heads, "kv heads of the model");
  AddFlag(app, "head-size", head_size, "64, 96, 128 or 256");
  AddFlag(app, "dtype", dtype, "type of the values")->check(CLI::IsMember({"f16", "bf16", "f32"}));
  AddFlag(app, "rope", rope, "canonical text of the RoPE settings");
  AddFlag(app, "codec-set", codec_set_id_hex, "id of the codec set, 64 hex digits");
  AddFlag(app, "extra", extra, "key=value that must agree too; may be repeated");
  AddFlag(app, "layer-range", layer_range, "begin and end (exclusive); default: all layers")
      ->expected(2);
  AddFlag(app, "head-range", head_range, "begin and end (exclusive); default: all kv heads")
      ->expected(2);
}

absl::StatusOr<client::Descriptor> SessionFlags::DescriptorOf() const {
  client::Descriptor d;
  d.model = model;
  d.weights_digest = weights_digest;
  d.rope = rope;
  FQ_RETURN_IF_ERROR(CheckPositive("layers", layers));
  FQ_RETURN_IF_ERROR(CheckPositive("kv-heads", kv_heads));
  FQ_RETURN_IF_ERROR(CheckPositive("head-size", head_size));
  std::tie(d.layers, d.kv_heads, d.head_size) = std::tuple(layers, kv_heads, head_size);
  FQ_ASSIGN_OR_RETURN(d.dtype, client::DTypeOf(dtype));
  d.codec_set_id = absl::HexStringToBytes(codec_set_id_hex);
  if (codec_set_id_hex.size() != 0 && codec_set_id_hex.size() != 64) {
    return absl::InvalidArgumentError(
        absl::StrCat("--codec-set has ", codec_set_id_hex.size(), " hex digits, must have 64"));
  }
  for (const std::string& pair : extra) {
    const std::vector<std::string> parts = absl::StrSplit(pair, absl::MaxSplits('=', 1));
    if (parts.size() != 2) {
      return absl::InvalidArgumentError(absl::StrCat("--extra is '", pair, "', must be key=value"));
    }
    d.extra[parts[0]] = parts[1];
  }
  return d;
}

absl::StatusOr<client::SessionSpec> SessionFlags::Spec(client::Client& client,
                                                       const Command& command) const {
  client::SessionSpec spec;
  spec.namespace_name = namespace_name;
  if (model.empty()) {
    FQ_ASSIGN_OR_RETURN(const auto infos, client.Namespaces(namespace_name, command.deadline()));
    if (infos.empty()) {
      return absl::NotFoundError(absl::StrCat("no namespace '", namespace_name,
                                              "'; to make one describe it (--model and so on)"));
    }
    spec.descriptor = infos.front().descriptor;
  } else {
    FQ_ASSIGN_OR_RETURN(spec.descriptor, DescriptorOf());
  }
  client::SlabRange& range = spec.range = client::WholeModel(spec.descriptor);
  FQ_RETURN_IF_ERROR(SetRange("layer-range", layer_range, spec.descriptor.layers,
                              {&range.layer_begin, &range.layer_end}));
  FQ_RETURN_IF_ERROR(SetRange("head-range", head_range, spec.descriptor.kv_heads,
                              {&range.head_begin, &range.head_end}));
  return spec;
}

void PrefixFlags::Add(CLI::App& app) {
  AddFlag(app, "tokens", tokens_file, "file of the prefix's token ids in decimal");
  AddFlag(app, "first-token", first_token, "without --tokens: the ids count from here");
  AddFlag(app, "blocks", blocks, "without --tokens: this many blocks of 64 ids");
  AddFlag(app, "salt", salt, "salt of the keys");
}

absl::StatusOr<std::vector<uint32_t>> PrefixFlags::Tokens() const {
  std::vector<uint32_t> tokens;
  if (!tokens_file.empty()) {
    FQ_ASSIGN_OR_RETURN(const std::string text, ReadFile("tokens", tokens_file));
    FQ_ASSIGN_OR_RETURN(tokens, ParseTokens(text));
  } else {
    if (blocks > kMaxBlocks) {
      return absl::InvalidArgumentError(
          absl::StrCat("--blocks is ", blocks, ", at most ", kMaxBlocks));
    }
    tokens.resize(size_t{blocks} * client::kBlockTokens);
    std::iota(tokens.begin(), tokens.end(), first_token);
  }
  if (tokens.size() >= client::kBlockTokens) return tokens;
  return absl::InvalidArgumentError(absl::StrCat(
      "the prefix has ", tokens.size(), " tokens, a block has 64: give --tokens or --blocks"));
}

}  // namespace fq::cli
