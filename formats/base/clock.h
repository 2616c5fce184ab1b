// Clock: the time, so that tests can move it. Steady time never goes back and
// counts for deadlines; wall time is Unix time, for signatures and recency.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_FORMATS_BASE_CLOCK_H_
#define WEIGHTFS_FORMATS_BASE_CLOCK_H_

#include <chrono>

namespace weightfs {

class Clock {
 public:
  using Time = std::chrono::steady_clock::time_point;
  using WallTime = std::chrono::system_clock::time_point;

  virtual ~Clock() = default;
  virtual Time Now() const = 0;
  virtual WallTime WallNow() const = 0;

  // The machine's clock.
  static const Clock& System();
};

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_BASE_CLOCK_H_
