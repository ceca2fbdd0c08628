// Exit codes of fqctl: an interface, never renumbered. The same list is in --help.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace fq::cli {

enum class ExitCode : int {
  kOk = 0,
  kUsage = 1,        // a flag or argument is wrong, here or for the node
  kNotFound = 2,     // a miss: not all of what was asked for is there
  kMismatch = 3,     // a failed precondition: namespace, codec set or session differ
  kUnavailable = 4,  // no answer in time, or draining
  kData = 5,         // a block failed its check, or get cannot write its file
  kExhausted = 6,    // no room, or a limit of the node
  kPermission = 7,   // not allowed, or not known
};

inline constexpr char kExitCodeHelp[] =
    "Exit codes: 0 ok, 1 usage, 2 not found or miss, 3 failed precondition (namespace or codec "
    "set\n"
    "differ), 4 unavailable or timeout, 5 data error, 6 resource exhausted, 7 permission denied.";

inline ExitCode ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return ExitCode::kOk;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kUnimplemented:
      return ExitCode::kUsage;
    case absl::StatusCode::kNotFound:
      return ExitCode::kNotFound;
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kAborted:
      return ExitCode::kMismatch;
    case absl::StatusCode::kResourceExhausted:
      return ExitCode::kExhausted;
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return ExitCode::kPermission;
    case absl::StatusCode::kDataLoss:
      return ExitCode::kData;
    default:
      return ExitCode::kUnavailable;
  }
}

}  // namespace fq::cli
