// Courtesy: how long a job in the background rests after each piece of its
// work. Not at all on a processor that is its own; where others want it as
// well, longer and longer: they do what somebody waits for.
//
// Not thread-safe; OwnTime() is the calling thread's.

#ifndef WEIGHTFS_CACHE_COURTESY_H_
#define WEIGHTFS_CACHE_COURTESY_H_

#include <chrono>

namespace weightfs {

class Courtesy {
 public:
  using Duration = std::chrono::nanoseconds;
  static constexpr std::chrono::milliseconds kFirstRest{2};
  static constexpr std::chrono::milliseconds kLongestRest{100};

  // Of a piece that computed and waited for nothing: the processor time that it
  // used, and how long it took. Returns how long to rest.
  Duration AfterPiece(Duration used, Duration took);

  // What the calling thread has used of a processor.
  static Duration OwnTime();

 private:
  Duration rest_{};
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_COURTESY_H_
