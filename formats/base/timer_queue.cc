#include "formats/base/timer_queue.h"

#include "formats/base/worker_pool.h"

namespace weightfs {

TimerQueue::TimerQueue(const std::string& thread_name)
    : thread_(StartThread(thread_name, [this] { Run(); })) {}

TimerQueue::~TimerQueue() { Stop(); }

TimerQueue::Id TimerQueue::At(Time when, std::function<void()> task) {
  MutexLock lock(mutex_);
  const Id id{when, next_++};
  if (stopping_) return id;
  const bool first = tasks_.empty() || id < tasks_.begin()->first;
  tasks_.emplace(id, std::move(task));
  if (first) wake_.NotifyOne();
  return id;
}

bool TimerQueue::Cancel(const Id& id) {
  std::function<void()> dropped;  // destroyed without the lock
  MutexLock lock(mutex_);
  auto it = tasks_.find(id);
  if (it == tasks_.end()) return false;
  dropped = std::move(it->second);
  tasks_.erase(it);
  return true;
}

void TimerQueue::Stop() {
  std::map<Id, std::function<void()>> dropped;
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    dropped.swap(tasks_);
  }
  wake_.NotifyAll();
  if (thread_.joinable()) thread_.join();
}

void TimerQueue::Run() {
  for (;;) {
    std::function<void()> task;
    {
      MutexLock lock(mutex_);
      for (;;) {
        if (stopping_) return;
        if (tasks_.empty()) {
          wake_.Wait(mutex_);
          continue;
        }
        const Time when = tasks_.begin()->first.first;
        if (when <= std::chrono::steady_clock::now()) break;
        wake_.WaitUntil(mutex_, when);
      }
      task = std::move(tasks_.begin()->second);
      tasks_.erase(tasks_.begin());
    }
    task();
  }
}

}  // namespace weightfs
