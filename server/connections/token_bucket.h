// How often something may happen: `burst` times at once, `per_second` in the long run. One thread.
#pragma once

#include <algorithm>
#include <chrono>

#include "server/clock.h"

namespace fq {

class TokenBucket {
 public:
  TokenBucket(double burst, double per_second)
      : burst_(burst), per_second_(per_second), tokens_(burst) {}

  // False when it has happened too often by `now`, which never runs backwards.
  bool Take(MonotonicTime now) {
    if (filled_ != MonotonicTime()) {
      const std::chrono::duration<double> passed = now - filled_;
      tokens_ = std::min(burst_, tokens_ + passed.count() * per_second_);
    }
    filled_ = now;
    if (tokens_ < 1) return false;
    tokens_ -= 1;
    return true;
  }

 private:
  const double burst_, per_second_;
  double tokens_;
  MonotonicTime filled_{};
};

}  // namespace fq
