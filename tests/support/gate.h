// Gate: where a test holds threads until it lets them go.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_TESTS_SUPPORT_GATE_H_
#define WEIGHTFS_TESTS_SUPPORT_GATE_H_

#include "formats/base/mutex.h"

namespace weightfs {

// Opens once; waits block until then.
class Gate {
 public:
  void Open() {
    MutexLock lock(mutex_);
    open_ = true;
    changed_.NotifyAll();
  }
  void Pass() {
    MutexLock lock(mutex_);
    ++waiting_;
    changed_.NotifyAll();
    while (!open_) changed_.Wait(mutex_);
  }
  void WaitForWaiters(int count) {
    MutexLock lock(mutex_);
    while (waiting_ < count) changed_.Wait(mutex_);
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool open_ GUARDED_BY(mutex_) = false;
  int waiting_ GUARDED_BY(mutex_) = 0;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_SUPPORT_GATE_H_
