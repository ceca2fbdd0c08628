// Fields of the JSON text of a codec-set file, checked as they are taken. Pure functions, callable
// from any thread. Errors are InvalidArgument with the field, what was found and what was expected.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace fq {

using Json = nlohmann::json;

inline absl::Status Invalid(absl::string_view field, absl::string_view found,
                            absl::string_view expected) {
  return absl::InvalidArgumentError(
      absl::StrCat("codec set: ", field, " is ", found, ", expected ", expected));
}

inline absl::StatusOr<const Json*> Find(const Json& object, const char* key) {
  if (!object.is_object()) return Invalid(key, "outside an object", "an object");
  const auto it = object.find(key);
  if (it == object.end()) return Invalid(key, "missing", "present");
  return &*it;
}

inline absl::StatusOr<int> FindInt(const Json& object, const char* key, int64_t max) {
  FQ_ASSIGN_OR_RETURN(const Json* value, Find(object, key));
  if (!value->is_number_integer()) return Invalid(key, value->type_name(), "an integer");
  const bool fits = value->is_number_unsigned() && value->get<uint64_t>() >= 1 &&
                    value->get<uint64_t>() <= static_cast<uint64_t>(max);
  if (!fits) return Invalid(key, value->dump(), absl::StrCat("1..", max));
  return value->get<int>();
}

inline absl::StatusOr<double> FindDouble(const Json& object, const char* key) {
  FQ_ASSIGN_OR_RETURN(const Json* value, Find(object, key));
  if (!value->is_number()) return Invalid(key, value->type_name(), "a number");
  const double number = value->get<double>();
  if (!std::isfinite(number)) return Invalid(key, "not finite", "finite");
  return number;
}

inline absl::StatusOr<std::string> FindString(const Json& object, const char* key) {
  FQ_ASSIGN_OR_RETURN(const Json* value, Find(object, key));
  if (!value->is_string()) return Invalid(key, value->type_name(), "a string");
  return value->get<std::string>();
}

inline absl::StatusOr<const Json*> FindArray(const Json& object, const char* key) {
  FQ_ASSIGN_OR_RETURN(const Json* value, Find(object, key));
  if (!value->is_array()) return Invalid(key, value->type_name(), "an array");
  return value;
}

}  // namespace fq
