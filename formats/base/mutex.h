// Mutex, MutexLock and CondVar: the standard ones with clang's thread-safety
// annotations, so that a build with clang proves the locking. Every field that
// a mutex guards says GUARDED_BY.

#ifndef WEIGHTFS_FORMATS_BASE_MUTEX_H_
#define WEIGHTFS_FORMATS_BASE_MUTEX_H_

#include <chrono>
#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define WEIGHTFS_THREAD_ANNOTATION(x) __attribute__((x))
#else
#define WEIGHTFS_THREAD_ANNOTATION(x)
#endif

#define CAPABILITY(x) WEIGHTFS_THREAD_ANNOTATION(capability(x))
#define SCOPED_CAPABILITY WEIGHTFS_THREAD_ANNOTATION(scoped_lockable)
#define GUARDED_BY(x) WEIGHTFS_THREAD_ANNOTATION(guarded_by(x))
#define PT_GUARDED_BY(x) WEIGHTFS_THREAD_ANNOTATION(pt_guarded_by(x))
#define REQUIRES(...) \
  WEIGHTFS_THREAD_ANNOTATION(requires_capability(__VA_ARGS__))
#define ACQUIRE(...) WEIGHTFS_THREAD_ANNOTATION(acquire_capability(__VA_ARGS__))
#define RELEASE(...) WEIGHTFS_THREAD_ANNOTATION(release_capability(__VA_ARGS__))
#define EXCLUDES(...) WEIGHTFS_THREAD_ANNOTATION(locks_excluded(__VA_ARGS__))
#define ACQUIRED_BEFORE(...) \
  WEIGHTFS_THREAD_ANNOTATION(acquired_before(__VA_ARGS__))
#define NO_THREAD_SAFETY_ANALYSIS \
  WEIGHTFS_THREAD_ANNOTATION(no_thread_safety_analysis)

namespace weightfs {

class CAPABILITY("mutex") Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void Lock() ACQUIRE() { mutex_.lock(); }
  void Unlock() RELEASE() { mutex_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mutex_;
};

class SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) ACQUIRE(mutex) : mutex_(mutex) {
    mutex_.Lock();
  }
  ~MutexLock() RELEASE() { mutex_.Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

// As std::condition_variable: waits may end early, so callers loop on their
// condition.
class CondVar {
 public:
  void Wait(Mutex& mutex) REQUIRES(mutex) {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    condition_.wait(lock);
    lock.release();
  }
  // False if `deadline` passed first.
  bool WaitUntil(Mutex& mutex, std::chrono::steady_clock::time_point deadline)
      REQUIRES(mutex) {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    const auto status = condition_.wait_until(lock, deadline);
    lock.release();
    return status == std::cv_status::no_timeout;
  }
  void NotifyOne() { condition_.notify_one(); }
  void NotifyAll() { condition_.notify_all(); }

 private:
  std::condition_variable condition_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_BASE_MUTEX_H_
