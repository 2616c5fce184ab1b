#include "tools/watchdog.h"

#include <utility>

#include "formats/base/worker_pool.h"

namespace weightfs {

ShutdownWatchdog::ShutdownWatchdog(std::chrono::milliseconds limit,
                                   std::function<void()> give_up)
    : limit_(limit),
      give_up_(std::move(give_up)),
      thread_(StartThread("wfs-watchdog", [this] { Run(); })) {}

ShutdownWatchdog::~ShutdownWatchdog() {
  {
    MutexLock lock(mutex_);
    done_ = true;
  }
  changed_.NotifyAll();
  thread_.join();
}

void ShutdownWatchdog::Arm() {
  {
    MutexLock lock(mutex_);
    if (deadline_.has_value()) return;
    deadline_ = std::chrono::steady_clock::now() + limit_;
  }
  changed_.NotifyAll();
}

void ShutdownWatchdog::Run() {
  {
    MutexLock lock(mutex_);
    while (!done_) {
      if (!deadline_.has_value()) {
        changed_.Wait(mutex_);
      } else if (!changed_.WaitUntil(mutex_, *deadline_) && !done_) {
        break;
      }
    }
    if (done_) return;
  }
  give_up_();
}

}  // namespace weightfs
