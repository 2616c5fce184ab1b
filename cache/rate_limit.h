// RateLimit: when a fetch may start so that all of them together bring no more
// than so many bytes per second.
//
// Not thread-safe. Times come from the caller.

#ifndef WEIGHTFS_CACHE_RATE_LIMIT_H_
#define WEIGHTFS_CACHE_RATE_LIMIT_H_

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "formats/base/clock.h"

namespace weightfs {

class RateLimit {
 public:
  // Bytes per second; 0: no limit.
  explicit RateLimit(uint64_t rate) : rate_(rate) {}

  // No fetch starts before this.
  Clock::Time next() const { return next_; }

  // A fetch of so many bytes starts.
  void OnStart(Clock::Time now, uint64_t bytes) {
    if (rate_ == 0) return;
    const std::chrono::duration<double> taken(static_cast<double>(bytes) /
                                              static_cast<double>(rate_));
    next_ = std::max(now, next_) +
            std::chrono::duration_cast<Clock::Time::duration>(taken);
  }

  // The largest fetch, of `most` bytes: what the limit allows in a quarter of a
  // second, so that bytes come evenly. At least `least`.
  uint64_t LargestFetch(uint64_t least, uint64_t most) const {
    return rate_ == 0 ? most : std::clamp(rate_ / 4, least, most);
  }

 private:
  const uint64_t rate_;
  Clock::Time next_{};
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_RATE_LIMIT_H_
