#include "kernels/codec_set_loss.h"

#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace fq {
namespace {

constexpr size_t kMaxLengths = 256;

absl::StatusOr<MeasuredLoss> ReadLoss(const Json& loss) {
  MeasuredLoss measured;
  FQ_ASSIGN_OR_RETURN(measured.perplexity_excess_percent,
                      FindDouble(loss, "perplexity_excess_percent"));
  FQ_ASSIGN_OR_RETURN(measured.standard_error_percent, FindDouble(loss, "standard_error_percent"));
  FQ_ASSIGN_OR_RETURN(measured.kl_divergence, FindDouble(loss, "kl_divergence"));
  FQ_ASSIGN_OR_RETURN(measured.top1_agreement_percent, FindDouble(loss, "top1_agreement_percent"));
  FQ_ASSIGN_OR_RETURN(measured.bits_per_value, FindDouble(loss, "bits_per_value"));
  FQ_ASSIGN_OR_RETURN(const double tokens, FindDouble(loss, "tokens"));
  if (tokens < 0 || tokens > 1e15) return Invalid("tokens", absl::StrCat(tokens), "0..1e15");
  measured.tokens = static_cast<int64_t>(tokens);
  FQ_ASSIGN_OR_RETURN(measured.text, FindString(loss, "text"));
  return measured;
}

// Of `loss_by_length`: all numbers but the excess are counts, shares or errors.
absl::Status CheckNotNegative(const Json& loss) {
  for (const char* key :
       {"standard_error_percent", "kl_divergence", "top1_agreement_percent", "bits_per_value"}) {
    FQ_ASSIGN_OR_RETURN(const double value, FindDouble(loss, key));
    if (value < 0) {
      return Invalid(absl::StrCat("loss_by_length: ", key), absl::StrCat(value), "at least 0");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<LossAtLength> ReadLossAtLength(const Json& item) {
  LossAtLength entry;
  FQ_ASSIGN_OR_RETURN(entry.profile, FindString(item, "profile"));
  if (entry.profile != "compact" && entry.profile != "near-lossless") {
    return Invalid("loss_by_length: profile", entry.profile, "compact or near-lossless");
  }
  FQ_RETURN_IF_ERROR(CheckNotNegative(item));
  FQ_ASSIGN_OR_RETURN(entry.loss, ReadLoss(item));
  return entry;
}

// An array of `size` items at `field`, or what is wrong with it.
absl::Status CheckArray(const Json& list, const std::string& field, int size) {
  if (!list.is_array()) return Invalid(field, list.type_name(), "an array");
  if (list.size() == static_cast<size_t>(size)) return absl::OkStatus();
  return Invalid(field, absl::StrCat(list.size(), " items"), absl::StrCat(size));
}

absl::StatusOr<double> ReadError(const Json& value, const std::string& field) {
  if (!value.is_number()) return Invalid(field, value.type_name(), "a number");
  const double error = value.get<double>();
  if (std::isfinite(error) && error >= 0) return error;
  return Invalid(field, value.dump(), "finite and at least 0");
}

// [layers][kv_heads][2] as one list.
absl::StatusOr<std::vector<double>> ReadErrors(const Json& errors, const char* profile, int layers,
                                               int kv_heads) {
  FQ_ASSIGN_OR_RETURN(const Json* list, FindArray(errors, profile));
  const std::string field = absl::StrCat("expected_error: ", profile);
  FQ_RETURN_IF_ERROR(CheckArray(*list, field, layers));
  std::vector<double> all;
  for (int layer = 0; layer < layers; ++layer) {
    const std::string in_layer = absl::StrCat(field, " of layer ", layer);
    FQ_RETURN_IF_ERROR(CheckArray((*list)[layer], in_layer, kv_heads));
    for (int head = 0; head < kv_heads; ++head) {
      const std::string in_head = absl::StrCat(in_layer, ", head ", head);
      const Json& sides = (*list)[layer][head];
      FQ_RETURN_IF_ERROR(CheckArray(sides, in_head, 2));
      for (const Json& side : sides) {
        FQ_ASSIGN_OR_RETURN(const double error, ReadError(side, in_head));
        all.push_back(error);
      }
    }
  }
  return all;
}

}  // namespace

absl::StatusOr<MeasuredLoss> FindLoss(const Json& root, const char* profile) {
  FQ_ASSIGN_OR_RETURN(const Json* losses, Find(root, "loss"));
  FQ_ASSIGN_OR_RETURN(const Json* loss, Find(*losses, profile));
  return ReadLoss(*loss);
}

absl::StatusOr<std::vector<LossAtLength>> FindLossByLength(const Json& root) {
  std::vector<LossAtLength> entries;
  if (!root.contains("loss_by_length")) return entries;
  FQ_ASSIGN_OR_RETURN(const Json* list, FindArray(root, "loss_by_length"));
  if (list->size() > kMaxLengths) {
    return Invalid("loss_by_length", absl::StrCat(list->size(), " items"),
                   absl::StrCat("at most ", kMaxLengths));
  }
  for (const Json& item : *list) {
    FQ_ASSIGN_OR_RETURN(LossAtLength entry, ReadLossAtLength(item));
    entries.push_back(std::move(entry));
  }
  return entries;
}

absl::StatusOr<ExpectedError> FindExpectedError(const Json& root, int layers, int kv_heads) {
  ExpectedError expected;
  if (!root.contains("expected_error")) return expected;
  FQ_ASSIGN_OR_RETURN(const Json* errors, Find(root, "expected_error"));
  FQ_ASSIGN_OR_RETURN(expected.compact, ReadErrors(*errors, "compact", layers, kv_heads));
  FQ_ASSIGN_OR_RETURN(expected.near_lossless,
                      ReadErrors(*errors, "near-lossless", layers, kv_heads));
  return expected;
}

}  // namespace fq
