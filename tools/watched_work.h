// WatchedWork: work on a thread of its own, which a disk that hangs may hold
// for good, while the main thread shows how far it is, takes signals and looks
// at the clock.

#ifndef WEIGHTFS_TOOLS_WATCHED_WORK_H_
#define WEIGHTFS_TOOLS_WATCHED_WORK_H_

#include <atomic>
#include <chrono>
#include <functional>
#include <optional>
#include <thread>

#include "formats/base/clock.h"
#include "formats/base/result.h"

namespace weightfs {

// How long a thread is inside a call that only the disk ends.
//
// Thread-safety: Stay on one thread, one at a time; age on any.
class DiskTime {
 public:
  class Stay {
   public:
    explicit Stay(DiskTime& time) : time_(time) {
      time_.since_ = Clock::System().Now().time_since_epoch().count();
    }
    ~Stay() { time_.since_ = 0; }
    Stay(const Stay&) = delete;
    Stay& operator=(const Stay&) = delete;

   private:
    DiskTime& time_;
  };

  // 0: it is not.
  std::chrono::milliseconds age() const;

 private:
  std::atomic<Clock::Time::rep> since_{0};
};

class WatchedWork {
 public:
  struct Parts {
    std::function<Result<>()> work;
    // On the main thread: again and again; and at a signal (SIGINT, SIGTERM,
    // SIGHUP), to make `work` end soon.
    std::function<void()> tick;
    std::function<void(int signal)> stop;
    // How long a call of `work` has not been answered by the disk.
    std::function<std::chrono::milliseconds()> stuck;
  };

  // 0, or the signal that ended it; nothing: the disk has not answered for
  // `patience`, and `work` still runs. The signals are blocked from then on.
  // Once.
  std::optional<int> Run(Parts parts, std::chrono::milliseconds patience);

  // What `work` returned. REQUIRES: Run returned a signal or 0.
  const Result<>& result() const { return result_; }

 private:
  Parts parts_;
  Result<> result_;
  std::jthread thread_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_WATCHED_WORK_H_
