// ShutdownWatchdog: the promise that a daemon told to end is gone in time, even
// if a thread of it is stuck on a dead disk.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_TOOLS_WATCHDOG_H_
#define WEIGHTFS_TOOLS_WATCHDOG_H_

#include <chrono>
#include <functional>
#include <thread>

#include "formats/base/unique_fd.h"

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

  // The clock starts; later calls do nothing. Async-signal-safe.
  void Arm();

 private:
  void Run();

  const std::chrono::milliseconds limit_;
  const std::function<void()> give_up_;
  const UniqueFd event_;  // an eventfd: counts calls of Arm, and the end
  std::jthread thread_;
};

// While it lives, SIGTERM, SIGINT and SIGHUP arm the watchdog and then go to
// whatever handled them before; signals that are ignored stay so. One at a
// time.
class ArmOnSignals {
 public:
  explicit ArmOnSignals(ShutdownWatchdog& watchdog);
  ~ArmOnSignals();
  ArmOnSignals(const ArmOnSignals&) = delete;
  ArmOnSignals& operator=(const ArmOnSignals&) = delete;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_WATCHDOG_H_
