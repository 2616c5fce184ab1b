// Reads a guarded field without its mutex, on purpose: clang must refuse it.

#include "formats/base/mutex.h"

namespace weightfs {

class Counter {
 public:
  int Get() { return value_; }

 private:
  Mutex mutex_;
  int value_ GUARDED_BY(mutex_) = 0;
};

int ReadUnguarded(Counter& counter) { return counter.Get(); }

}  // namespace weightfs
