// Early return of an error, for functions that return absl::Status or absl::StatusOr<T>.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define FQ_STATUS_CONCAT_INNER(a, b) a##b
#define FQ_STATUS_CONCAT(a, b) FQ_STATUS_CONCAT_INNER(a, b)

// Returns the status of `expression` unless it is OK.
#define FQ_RETURN_IF_ERROR(expression)                                              \
  do {                                                                              \
    if (::absl::Status fq_status = (expression); !fq_status.ok()) return fq_status; \
  } while (false)

// Evaluates a StatusOr<T>; returns its error, or moves its value into `lhs`, which may be a
// declaration.
// NOLINTBEGIN(bugprone-macro-parentheses): a declaration cannot stand in parentheses
#define FQ_ASSIGN_OR_RETURN(lhs, expression) \
  FQ_ASSIGN_OR_RETURN_INNER(FQ_STATUS_CONCAT(fq_status_or_, __LINE__), lhs, expression)
#define FQ_ASSIGN_OR_RETURN_INNER(result, lhs, expression) \
  auto result = (expression);                              \
  if (!result.ok()) return std::move(result).status();     \
  lhs = std::move(result).value()
// NOLINTEND(bugprone-macro-parentheses)
