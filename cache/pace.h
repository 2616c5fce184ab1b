// Pace: how long an origin's fetches wait for their first bytes, and how fast
// they come then; and which fetch is so much slower than those before it that
// another connection would bring its bytes sooner.
//
// Not thread-safe. Times come from the caller.

#ifndef WEIGHTFS_CACHE_PACE_H_
#define WEIGHTFS_CACHE_PACE_H_

#include <cstdint>

#include "formats/base/clock.h"

namespace weightfs {

class Pace {
 public:
  using Duration = Clock::Time::duration;

  // Fetches of fewer bytes say nothing about a rate.
  static constexpr uint64_t kLeastBytes = 64 << 10;
  // A fetch is slow that is to take so many times what is usual, and …
  static constexpr double kTimesUsual = 4;
  // … this long at least, from now on.
  static constexpr double kLeastSeconds = 1;

  // A fetch ended well: it waited for its first bytes, and then took so long.
  void OnEnd(Duration waited, uint64_t bytes, Duration took);

  // How much to ask for at once so that bytes come in at least three quarters
  // of a fetch's time; within the limits.
  uint64_t EfficientBytes(uint64_t least, uint64_t most) const;

  // Whether a fetch that has run for `ran` and brought `received` of its
  // `length` bytes is slow. Nothing is, before others ended.
  bool IsSlow(Duration ran, uint64_t received, uint64_t length) const;

 private:
  double wait_ = 0;  // seconds; moving averages
  double rate_ = 0;  // bytes per second; 0: not known yet
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_PACE_H_
