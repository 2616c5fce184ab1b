// RecentFailures: what of a file could not be had a moment ago. The kernel asks
// for a page again whose read-ahead failed, and each thread that waited for the
// page asks in turn: without a memory a reader would wait for the deadline
// twice, and the n-th of them n times.
//
// Not thread-safe. Times come from the caller.

#ifndef WEIGHTFS_CACHE_RECENT_FAILURES_H_
#define WEIGHTFS_CACHE_RECENT_FAILURES_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>

#include "formats/base/clock.h"
#include "formats/base/error.h"

namespace weightfs {

class RecentFailures {
 public:
  // The oldest go first. More than a kernel asks for at once: with fewer, many
  // readers who end together are told of one deadline twice.
  static constexpr size_t kMost = 2048;
  using Duration = Clock::Time::duration;

  explicit RecentFailures(std::chrono::milliseconds memory) : memory_(memory) {}

  // Bytes [begin, end) could not be had in `patience`; Duration::max(): not in
  // any time.
  void Add(uint64_t begin, uint64_t end, Clock::Time now, Duration patience,
           const Error& error);
  // Why some of [begin, end) failed, marked as told before; null if none did
  // lately for somebody who waited about as long as `patience`. Valid until the
  // next call.
  const Error* Find(uint64_t begin, uint64_t end, Clock::Time now,
                    Duration patience);
  // [begin, end) came after all.
  void Forget(uint64_t begin, uint64_t end);

  // Somebody waited for [begin, end) and was interrupted: the next one who
  // waits for the page asks again, and is to wait so much less.
  void AddWait(uint64_t begin, uint64_t end, Clock::Time now, Duration waited);
  // How long some of [begin, end) was waited for so, at most.
  Duration Waited(uint64_t begin, uint64_t end, Clock::Time now);

 private:
  struct Failure {
    uint64_t begin;
    uint64_t end;
    Clock::Time until;
    Duration patience;
    Error error;
  };

  struct Wait {
    uint64_t begin;
    uint64_t end;
    Clock::Time until;
    Duration waited;
  };

  const std::chrono::milliseconds memory_;
  std::deque<Failure> failures_;  // oldest first
  std::deque<Wait> waits_;        // oldest first
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_RECENT_FAILURES_H_
