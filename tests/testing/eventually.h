// Waiting in tests for what another thread or process does.
#pragma once

#include <chrono>
#include <functional>
#include <thread>

namespace fq {

// How long a test waits for what is sure to come. It costs nothing where things work, and a machine
// that is busy with something else may not run a thread for seconds.
inline constexpr std::chrono::seconds kPatience{60};

// True once `condition` holds; false after kPatience.
inline bool Eventually(const std::function<bool()>& condition) {
  const auto limit = std::chrono::steady_clock::now() + kPatience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > limit) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace fq
