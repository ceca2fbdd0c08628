// The error of a field that does not hold what it must.
#pragma once

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace fq {

// InvalidArgument: names the field, its value and what is allowed.
template <typename T>
absl::Status BadField(absl::string_view field, const T& value, absl::string_view rule) {
  return absl::InvalidArgumentError(absl::StrCat(field, " = ", value, ": ", rule));
}

}  // namespace fq
