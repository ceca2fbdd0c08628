// Checks of the first message of a Session stream. Pure functions, any thread. InvalidArgument
// names the field and both values.
#pragma once

#include "absl/status/status.h"
#include "server/rpc/wire.h"

namespace fq {

absl::Status CheckSessionRequest(const wire::SessionRequest& request);

// 1..128 of [a-zA-Z0-9._/-].
absl::Status CheckNamespaceName(absl::string_view name);

}  // namespace fq
