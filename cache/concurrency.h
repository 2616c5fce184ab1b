// Concurrency: how many fetches of an origin are in flight at once. More as
// long as more bring more bytes per second; half as many where the origin
// refuses (429, 503).
//
// Not thread-safe. Times come from the caller.

#ifndef WEIGHTFS_CACHE_CONCURRENCY_H_
#define WEIGHTFS_CACHE_CONCURRENCY_H_

#include <chrono>
#include <cstddef>
#include <cstdint>

#include "formats/base/clock.h"

namespace weightfs {

class Concurrency {
 public:
  // What was fetched is measured over so long, all of which the limit must have
  // been reached: else another limit would not have changed it.
  static constexpr std::chrono::milliseconds kPeriod{500};
  // A step that brought less than a tenth more is taken back, and the next one
  // is tried after so long; also after a refusal.
  static constexpr std::chrono::seconds kRest{10};
  static constexpr double kGain = 1.1;

  // Starts with `usual`; grows to `most`.
  Concurrency(size_t usual, size_t most);

  size_t limit() const { return limit_; }

  // `fetched`: all bytes so far. `full`: the limit is reached, and more waits.
  void OnLook(Clock::Time now, uint64_t fetched, bool full);
  // Refusals of one moment count once.
  void OnRefused(Clock::Time now);

 private:
  void Begin(Clock::Time now, uint64_t fetched);

  const size_t usual_;
  const size_t most_;
  size_t limit_;
  size_t before_ = 0;       // the last step; 0: none is being tried
  double goodput_ = 0;      // before it; bytes per second
  Clock::Time rest_until_;  // no step before
  Clock::Time refused_;     // lately
  Clock::Time since_{};     // of what is measured; none: nothing is
  uint64_t fetched_ = 0;    // by then
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_CONCURRENCY_H_
