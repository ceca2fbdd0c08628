#include "server/rpc/validate_session.h"

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "kernels/base/status_macros.h"
#include "server/rpc/validate.h"

namespace fq {
namespace {

constexpr uint32_t kMaxLayers = 1024;
constexpr uint32_t kMaxHeads = 1024;
constexpr size_t kMaxExtraPairs = 32;
constexpr size_t kMaxExtraBytes = 256;

absl::Status CheckExtra(const wire::NamespaceDescriptor& d) {
  if (static_cast<size_t>(d.extra_size()) > kMaxExtraPairs) {
    return absl::InvalidArgumentError(absl::StrCat(
        "namespace_descriptor.extra has ", d.extra_size(), " pairs: at most ", kMaxExtraPairs));
  }
  for (const auto& [key, value] : d.extra()) {
    FQ_RETURN_IF_ERROR(
        CheckLength("namespace_descriptor.extra key", key.size(), 0, kMaxExtraBytes));
    FQ_RETURN_IF_ERROR(
        CheckLength(absl::StrCat("namespace_descriptor.extra[", absl::CHexEscape(key), "]"),
                    value.size(), 0, kMaxExtraBytes));
  }
  return absl::OkStatus();
}

absl::Status CheckDescriptor(const wire::NamespaceDescriptor& d) {
  FQ_RETURN_IF_ERROR(CheckLength("namespace_descriptor.model", d.model().size(), 1, 256));
  FQ_RETURN_IF_ERROR(
      CheckLength("namespace_descriptor.weights_digest", d.weights_digest().size(), 0, 128));
  FQ_RETURN_IF_ERROR(CheckRange("namespace_descriptor.layers", d.layers(), 1, kMaxLayers));
  FQ_RETURN_IF_ERROR(CheckRange("namespace_descriptor.kv_heads", d.kv_heads(), 1, kMaxHeads));
  FQ_RETURN_IF_ERROR(
      CheckOneOf("namespace_descriptor.head_size", d.head_size(), {64, 96, 128, 256}));
  if (d.dtype() < wire::DTYPE_F16 || d.dtype() > wire::DTYPE_F32) {
    return BadField("namespace_descriptor.dtype", static_cast<int>(d.dtype()),
                    "must be F16 (1), BF16 (2) or F32 (3)");
  }
  FQ_RETURN_IF_ERROR(CheckLength("namespace_descriptor.rope", d.rope().size(), 0, 1024));
  if (!d.codec_set_id().empty()) {
    FQ_RETURN_IF_ERROR(
        CheckLength("namespace_descriptor.codec_set_id", d.codec_set_id().size(), 32, 32));
  }
  return CheckExtra(d);
}

absl::Status CheckInterval(absl::string_view what, uint32_t begin, uint32_t end, uint32_t count) {
  FQ_RETURN_IF_ERROR(CheckRange(absl::StrCat("range.", what, "_end"), end, 1, count));
  return CheckRange(absl::StrCat("range.", what, "_begin"), begin, 0, end - 1);
}

}  // namespace

absl::Status CheckNamespaceName(absl::string_view name) {
  FQ_RETURN_IF_ERROR(CheckLength("namespace_name", name.size(), 1, 128));
  for (char c : name) {
    if (absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '/' ||
        c == '-') {
      continue;
    }
    return BadField("namespace_name", absl::StrCat("'", absl::CHexEscape(name), "'"),
                    "only a-z, A-Z, 0-9 and ._/- are allowed");
  }
  return absl::OkStatus();
}

absl::Status CheckSessionRequest(const wire::SessionRequest& request) {
  FQ_RETURN_IF_ERROR(CheckNamespaceName(request.namespace_name()));
  FQ_RETURN_IF_ERROR(CheckLength("client_name", request.client_name().size(), 0, 128));
  FQ_RETURN_IF_ERROR(CheckLength("tenant", request.tenant().size(), 0, 256));
  if (!request.has_namespace_descriptor()) {
    return absl::InvalidArgumentError("namespace_descriptor: required in the first message");
  }
  if (!request.has_range()) {
    return absl::InvalidArgumentError("range: required in the first message");
  }
  const wire::NamespaceDescriptor& d = request.namespace_descriptor();
  const wire::SlabRange& range = request.range();
  FQ_RETURN_IF_ERROR(CheckDescriptor(d));
  FQ_RETURN_IF_ERROR(CheckInterval("layer", range.layer_begin(), range.layer_end(), d.layers()));
  return CheckInterval("head", range.head_begin(), range.head_end(), d.kv_heads());
}

}  // namespace fq
