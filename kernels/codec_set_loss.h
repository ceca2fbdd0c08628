// What a codec-set file says about its own quality: the keys `loss`, `loss_by_length` and
// `expected_error` of FORMAT.md section 7. Pure functions, callable from any thread; errors as in
// codec_set_json.h.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "kernels/codec_set.h"
#include "kernels/codec_set_json.h"

namespace fq {

// The loss of "compact" or "near-lossless", from the file's root.
absl::StatusOr<MeasuredLoss> FindLoss(const Json& root, const char* profile);

// Empty when the file has none.
absl::StatusOr<std::vector<LossAtLength>> FindLossByLength(const Json& root);

// Both lists empty when the file has none.
absl::StatusOr<ExpectedError> FindExpectedError(const Json& root, int layers, int kv_heads);

}  // namespace fq
