// ShutdownWatchdog: the promise that a daemon told to end is gone in time, even
// if a thread of it is stuck on a dead disk.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_TOOLS_WATCHDOG_H_
#define WEIGHTFS_TOOLS_WATCHDOG_H_

#include <chrono>
#include <functional>
#include <optional>
#include <thread>

#include "formats/base/mutex.h"

namespace weightfs {

class ShutdownWatchdog {
 public:
  // `give_up` runs on the watchdog's thread if more than `limit` pass between
  // Arm() and the destructor.
  ShutdownWatchdog(std::chrono::milliseconds limit,
                   std::function<void()> give_up);
  ~ShutdownWatchdog();
  ShutdownWatchdog(const ShutdownWatchdog&) = delete;
  ShutdownWatchdog& operator=(const ShutdownWatchdog&) = delete;

  // The clock starts; later calls do nothing.
  void Arm() EXCLUDES(mutex_);

 private:
  void Run() EXCLUDES(mutex_);

  const std::chrono::milliseconds limit_;
  const std::function<void()> give_up_;
  Mutex mutex_;
  CondVar changed_;
  std::optional<std::chrono::steady_clock::time_point> deadline_
      GUARDED_BY(mutex_);
  bool done_ GUARDED_BY(mutex_) = false;
  std::jthread thread_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_WATCHDOG_H_
