// ParkedOps: the calls that wait for bytes or an index. Whoever takes an op out
// of the table has the right to answer it, and nobody else has: completion,
// interrupt, deadline and shutdown can race, and one of them answers.
//
// Thread-safety: safe for concurrent use. No lock is held while callbacks run.

#ifndef WEIGHTFS_FS_PARKED_OPS_H_
#define WEIGHTFS_FS_PARKED_OPS_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <unordered_map>

#include "formats/base/error.h"
#include "formats/base/mutex.h"
#include "formats/base/timer_queue.h"

namespace weightfs {

using OpId = uint64_t;  // never 0, never reused

class ParkedOps {
 public:
  // `timers` must outlive it.
  explicit ParkedOps(TimerQueue& timers) : timers_(timers) {}

  // An op that is not parked yet; Interrupt() on it is remembered. Every
  // reserved op must be parked or released.
  OpId Reserve() EXCLUDES(mutex_);
  // The op was answered without parking.
  void Release(OpId op) EXCLUDES(mutex_);
  // When it was reserved first: deadlines count from there. REQUIRES: reserved.
  TimerQueue::Time Started(OpId op) const EXCLUDES(mutex_);

  // What a parked op waits for, and how it ends otherwise. `where` says what it
  // waits for, for logs; `fail` answers it with an error; `abort` then ends the
  // work behind it (may be empty).
  struct Waiter {
    std::function<std::string()> where;
    std::function<void(Error)> fail;
    std::function<void()> abort;
    // Asked at the deadline: whether there is a later one, as things are. Must
    // not call back. May be empty.
    std::function<TimerQueue::Time()> until{};
  };
  // Parks a reserved op. If it was interrupted before, or after Shutdown(), it
  // fails inline and false is returned.
  bool Park(OpId op, TimerQueue::Time deadline, Waiter waiter) EXCLUDES(mutex_);

  // True once, for the one caller that may answer the op.
  bool Take(OpId op) EXCLUDES(mutex_);
  // As Take, but the op is reserved again: it can park a second time, and an
  // interrupt meanwhile is remembered.
  bool Unpark(OpId op) EXCLUDES(mutex_);

  void Interrupt(OpId op) EXCLUDES(mutex_);
  void Shutdown() EXCLUDES(mutex_);
  size_t size() EXCLUDES(mutex_);
  // The later deadline of a parked op, if it has one by now.
  std::optional<TimerQueue::Time> Until(OpId op) const EXCLUDES(mutex_);
  // What the op waits for, for logs.
  std::string WaitsFor(OpId op) const EXCLUDES(mutex_);

 private:
  struct Reserved {
    bool interrupted = false;
    TimerQueue::Time started{};
  };
  struct Op {
    Waiter waiter;
    TimerQueue::Time started{};
    TimerQueue::Id timer;
  };

  // Takes and fails the op.
  void Fail(OpId op, Error error) EXCLUDES(mutex_);
  std::optional<Op> TakeParked(OpId op) EXCLUDES(mutex_);
  void OnDeadline(OpId op) EXCLUDES(mutex_);
  bool TakeOut(OpId op, bool reserve) EXCLUDES(mutex_);

  TimerQueue& timers_;
  mutable Mutex mutex_;
  OpId next_ GUARDED_BY(mutex_) = 1;
  bool stopped_ GUARDED_BY(mutex_) = false;
  std::unordered_map<OpId, Reserved> reserved_ GUARDED_BY(mutex_);
  std::unordered_map<OpId, Op> parked_ GUARDED_BY(mutex_);
};

}  // namespace weightfs

#endif  // WEIGHTFS_FS_PARKED_OPS_H_
