// Attention of the query heads of one kv head over encoded pages, without decoding them to rows:
// scores use q' = A_K^-T q on coded values, sums of values stay in the coded domain and A_V^-1 is
// applied once at the end. Pure function, callable from any thread.
#pragma once

#include "kernels/backend.h"
#include "kernels/cpu/primitives.h"

namespace fq {

void AttendHead(const Primitives& primitives, const Backend::Context& context,
                const AttendTask& task);

}  // namespace fq
