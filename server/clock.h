// Time as the node sees it: monotonic, and injectable where a test must make it pass.
#pragma once

#include <chrono>
#include <functional>

namespace fq {

using MonotonicTime = std::chrono::steady_clock::time_point;
using Milliseconds = std::chrono::milliseconds;
using Clock = std::function<MonotonicTime()>;  // thread-safe

inline MonotonicTime SteadyNow() { return std::chrono::steady_clock::now(); }

}  // namespace fq
