// WorkerPool: a fixed number of threads that run tasks in the order in which
// they came. All signals are blocked in its threads, so that they reach main.
//
// Thread-safety: safe for concurrent use. Tasks must not throw.

#ifndef WEIGHTFS_FORMATS_BASE_WORKER_POOL_H_
#define WEIGHTFS_FORMATS_BASE_WORKER_POOL_H_

#include <deque>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "formats/base/mutex.h"

namespace weightfs {

class WorkerPool {
 public:
  // `name` shows in ps and debuggers (15 bytes at most).
  WorkerPool(const std::string& name, size_t threads);
  // Stops; see Stop().
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // Queues `task`. After Stop() it is destroyed unrun, and false is returned.
  bool Submit(std::function<void()> task) EXCLUDES(mutex_);

  // Runs what is running to its end, destroys what is queued, joins.
  // Idempotent; not to be called from a task.
  void Stop() EXCLUDES(mutex_);

 private:
  void Run() EXCLUDES(mutex_);

  Mutex mutex_;
  CondVar wake_;
  std::deque<std::function<void()>> tasks_ GUARDED_BY(mutex_);
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::vector<std::jthread> threads_;
};

// Starts a thread with every signal blocked and the given name.
std::jthread StartThread(const std::string& name, std::function<void()> body);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_BASE_WORKER_POOL_H_
