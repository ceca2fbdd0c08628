// How fast the node has been lately, in bytes per second. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>

#include "server/clock.h"

namespace fq {

class RateMeter {
 public:
  // One call's bytes and the time they took. Recent calls weigh most.
  void Add(uint64_t bytes, std::chrono::duration<double> took) {
    if (bytes == 0 || took.count() <= 0) return;
    double rate = static_cast<double>(bytes) / took.count();
    double old = rate_.load(std::memory_order_relaxed);
    rate_.store(old == 0 ? rate : old + kWeight * (rate - old), std::memory_order_relaxed);
  }
  double bytes_per_second() const { return rate_.load(std::memory_order_relaxed); }  // 0: unknown

 private:
  static constexpr double kWeight = 0.2;  // of the newest call; a lost race costs one sample
  std::atomic<double> rate_{0};
};

}  // namespace fq
