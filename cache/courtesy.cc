#include "cache/courtesy.h"

#include <algorithm>
#include <ctime>

namespace weightfs {

Courtesy::Duration Courtesy::AfterPiece(Duration used, Duration took) {
  const bool shared = took > used + used / 4;
  if (!shared) {
    // It comes back soon where the others are gone only for a moment.
    rest_ /= 2;
    return Duration{};
  }
  rest_ = std::clamp<Duration>(2 * rest_, kFirstRest, kLongestRest);
  return rest_;
}

Courtesy::Duration Courtesy::OwnTime() {
  struct timespec used {};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
  return std::chrono::seconds(used.tv_sec) +
         std::chrono::nanoseconds(used.tv_nsec);
}

}  // namespace weightfs
