// OriginHealth: when to ask an origin again that failed. One failing fetch
// waits by itself; when several fail in a row without a byte in between, the
// origin counts as down, and all fetches of it wait together and come back two
// at a time, so that many flights that fail at once do not multiply attempts.
// An origin that names a time (Retry-After) is left alone until then.
//
//   up --kDownAfter failures in a row, or Retry-After--> down
//   down --a byte, from a fetch that started after the pause--> up
//
// Failures are in a row as long as no fetch made progress: an origin that gives
// a byte and breaks goes down again at its next failure, for longer.
//
// Not thread-safe. Times come from the caller.

#ifndef WEIGHTFS_CACHE_ORIGIN_HEALTH_H_
#define WEIGHTFS_CACHE_ORIGIN_HEALTH_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <random>

#include "formats/base/clock.h"
#include "formats/base/error.h"

namespace weightfs {

class OriginHealth {
 public:
  using Wait = std::chrono::nanoseconds;

  static constexpr int kDownAfter = 4;  // failures in a row
  static constexpr size_t kProbes = 2;  // fetches at once while down
  // Longer waits than this are not believed.
  static constexpr std::chrono::minutes kMaxRetryAfter{10};

  // Waits grow from `first` to `most`. `seed` 0: from the system.
  OriginHealth(std::chrono::milliseconds first, std::chrono::milliseconds most,
               uint64_t seed);

  bool down() const { return down_; }
  // No fetch starts before this.
  Clock::Time paused_until() const { return paused_until_; }

  // A fetch that started at `started` got its first byte.
  void OnBytes(Clock::Time started);
  // A fetch that started at `started` brought enough to be called progress.
  void OnProgress(Clock::Time started);
  // A fetch failed with a code that is worth a retry. `failures` of this flight
  // in a row, this one included; `progress`: before it failed. Returns how long
  // that flight has to wait.
  Wait OnFailure(Clock::Time now, int failures, const Error& error,
                 bool progress);

  // A random part of first * 2^(failures - 1), at most `most` ("full jitter").
  Wait Backoff(int failures);

 private:
  const Wait first_;
  const Wait most_;
  std::mt19937_64 random_;
  bool down_ = false;
  int streak_ = 0;  // failures since the last progress anywhere
  int rounds_ = 0;  // pauses in a row
  Clock::Time paused_until_{};
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_ORIGIN_HEALTH_H_
