// TimerQueue: one thread that runs short tasks at given times (deadlines,
// retries). Tasks must not block and must not throw.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_FORMATS_BASE_TIMER_QUEUE_H_
#define WEIGHTFS_FORMATS_BASE_TIMER_QUEUE_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <utility>

#include "formats/base/mutex.h"

namespace weightfs {

class TimerQueue {
 public:
  using Time = std::chrono::steady_clock::time_point;
  // Identifies a task; never reused.
  using Id = std::pair<Time, uint64_t>;

  explicit TimerQueue(const std::string& thread_name);
  ~TimerQueue();
  TimerQueue(const TimerQueue&) = delete;
  TimerQueue& operator=(const TimerQueue&) = delete;

  Id At(Time when, std::function<void()> task) EXCLUDES(mutex_);
  // True if the task will not run; false if it ran, runs, or was cancelled.
  bool Cancel(const Id& id) EXCLUDES(mutex_);
  // Destroys waiting tasks, waits for the one that runs. Idempotent; not to be
  // called from a task.
  void Stop() EXCLUDES(mutex_);

 private:
  void Run() EXCLUDES(mutex_);

  Mutex mutex_;
  CondVar wake_;
  std::map<Id, std::function<void()>> tasks_ GUARDED_BY(mutex_);
  uint64_t next_ GUARDED_BY(mutex_) = 0;
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::jthread thread_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_BASE_TIMER_QUEUE_H_
