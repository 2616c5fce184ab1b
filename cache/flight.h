// Flight: a run of bytes of one file that is fetched from the origin, over as
// many attempts as that takes. Its granules are published one by one, as they
// complete.
//
//   kQueued -> kRunning -> kEnded
//                 |  ^
//                 v  |
//       kBackoff -> kQueued
//
// and from each state to kEnded, when nobody wants it any more. An attempt may
// outlive its flight: a flight that was cancelled is kEnded at once, and its
// attempt counts as running until the origin says OnDone.
//
// Guarded by FetchCore's mutex, but for what says "attempt": that belongs to
// the running attempt's thread, and passes to the next one under the mutex.

#ifndef WEIGHTFS_CACHE_FLIGHT_H_
#define WEIGHTFS_CACHE_FLIGHT_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "cache/origin.h"
#include "cache/read_op.h"
#include "formats/base/clock.h"
#include "formats/base/error.h"

namespace weightfs {

struct Flight {
  enum class State : uint8_t { kQueued, kRunning, kBackoff, kEnded };

  Flight(std::shared_ptr<FetchFile> fetch_file, uint64_t first, uint64_t stop)
      : file(std::move(fetch_file)),
        end(stop),
        position(first),
        published(first) {}

  // Whether its attempt may be broken off, if it is slow.
  bool MayBeOvertaken() const {
    constexpr int kMost = 3;
    return state == State::kRunning && waiters > 0 && !overtaken &&
           overtakings < kMost;
  }

  const std::shared_ptr<FetchFile> file;
  uint64_t end;  // less once another process claims a part of it
  // The one read that it is for; null if it fetches granules.
  std::shared_ptr<ReadOp> direct;

  State state = State::kQueued;
  bool in_demand = false;  // kQueued: which queue it is in
  int64_t ticket = 0;      // kQueued: its key there
  bool prefetch = false;   // Prefetch() asked for some of it
  bool anyway = false;     // needs no claim
  bool claimed = false;    // what is not published yet
  bool asking = false;     // its attempt waits for the claim
  bool overtaken = false;  // its attempt is broken off, since it is slow
  size_t waiters = 0;      // of its granules, or 1 if direct
  int attempts = 0;
  int failures = 0;                    // in a row, without progress
  int overtakings = 0;                 // attempts broken off, since slow
  Clock::Time look_at{};               // when to ask whether it is slow
  std::optional<Error> last_error;     // of the last attempt that failed
  const FetchSink* attempt = nullptr;  // the one that runs
  FetchId fetch = 0;                   // its id, once it is known

  uint64_t position;                      // attempt: the next byte to come
  std::shared_ptr<GranuleBytes> filling;  // attempt: the granule it lies in
  uint64_t published;  // granules before this byte were handed out

  // Set under the mutex, read by the attempt without it.
  std::atomic<bool> cancelled{false};
  // When the attempt started or its last byte came; the attempt moves it.
  std::atomic<Clock::Time> last_bytes{Clock::Time()};
  // Of the running attempt, for messages; the attempt moves them.
  std::atomic<int> status{0};         // 0: no answer
  std::atomic<uint64_t> received{0};  // bytes
};

// What waits for a connection: a granule, or a flight (a retry, or direct).
struct QueueItem {
  std::shared_ptr<FetchFile> file;
  uint64_t granule = 0;
  std::shared_ptr<Flight> flight;  // null: a granule
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_FLIGHT_H_
