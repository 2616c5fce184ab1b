// InlineStays: the door through which a FUSE worker goes into the cache. Reads
// of resident memory do not wait, but a mapped page that was dropped meanwhile
// would be read from the disk: so only some may be inside at once, and nobody
// follows while one has not come out for too long.
//
// Thread-safety: safe for concurrent use; no locks.

#ifndef WEIGHTFS_CACHE_INLINE_STAYS_H_
#define WEIGHTFS_CACHE_INLINE_STAYS_H_

#include <array>
#include <atomic>
#include <chrono>

#include "formats/base/clock.h"

namespace weightfs {

class InlineStays {
 public:
  static constexpr size_t kPlaces = 4;

  explicit InlineStays(std::chrono::milliseconds patience)
      : patience_(patience) {}

  class Stay {
   public:
    explicit Stay(InlineStays& door) : place_(door.Take()) {}
    ~Stay() {
      if (place_ != nullptr) place_->store(kFree, std::memory_order_release);
    }
    Stay(const Stay&) = delete;
    Stay& operator=(const Stay&) = delete;

    // False: go another way.
    bool inside() const { return place_ != nullptr; }

   private:
    std::atomic<Clock::Time::rep>* const place_;
  };

 private:
  using Place = std::atomic<Clock::Time::rep>;  // since when, or free
  static constexpr Clock::Time::rep kFree = 0;

  Place* Take() {
    const auto now = Clock::System().Now();
    const auto late = (now - patience_).time_since_epoch().count();
    Place* taken = nullptr;
    for (Place& place : places_) {
      auto since = place.load(std::memory_order_relaxed);
      if (since != kFree && since <= late) {
        if (taken != nullptr) taken->store(kFree, std::memory_order_relaxed);
        return nullptr;
      }
      if (since == kFree && taken == nullptr &&
          place.compare_exchange_strong(since, now.time_since_epoch().count(),
                                        std::memory_order_acquire)) {
        taken = &place;
      }
    }
    return taken;
  }

  const std::chrono::milliseconds patience_;
  std::array<Place, kPlaces> places_{};
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_INLINE_STAYS_H_
