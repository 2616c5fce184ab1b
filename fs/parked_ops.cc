#include "fs/parked_ops.h"

#include <utility>
#include <vector>

#include "formats/base/clock.h"
#include "formats/base/result.h"

namespace weightfs {

OpId ParkedOps::Reserve() {
  MutexLock lock(mutex_);
  const OpId op = next_++;
  reserved_.emplace(op, Reserved{false, std::chrono::steady_clock::now()});
  return op;
}

void ParkedOps::Release(OpId op) {
  MutexLock lock(mutex_);
  reserved_.erase(op);
}

TimerQueue::Time ParkedOps::Started(OpId op) const {
  MutexLock lock(mutex_);
  const auto it = reserved_.find(op);
  return it != reserved_.end() ? it->second.started
                               : std::chrono::steady_clock::now();
}

bool ParkedOps::Park(OpId op, TimerQueue::Time deadline, Waiter waiter) {
  bool refused = false;
  {
    MutexLock lock(mutex_);
    auto reserved = reserved_.find(op);
    refused =
        stopped_ || reserved == reserved_.end() || reserved->second.interrupted;
    Op parked;
    if (reserved != reserved_.end()) {
      parked.started = reserved->second.started;
      reserved_.erase(reserved);
    }
    if (!refused) {
      parked.waiter = std::move(waiter);
      parked.timer = timers_.At(deadline, [this, op] { OnDeadline(op); });
      parked_.emplace(op, std::move(parked));
      return true;
    }
  }
  waiter.fail(Error(Code::kCancelled, "interrupted"));
  return false;
}

bool ParkedOps::Take(OpId op) { return TakeOut(op, false); }

bool ParkedOps::Unpark(OpId op) { return TakeOut(op, true); }

bool ParkedOps::TakeOut(OpId op, bool reserve) {
  Op taken;  // destroyed without the lock
  {
    MutexLock lock(mutex_);
    auto it = parked_.find(op);
    if (it == parked_.end()) return false;
    taken = std::move(it->second);
    parked_.erase(it);
    if (reserve) reserved_.emplace(op, Reserved{false, taken.started});
  }
  timers_.Cancel(taken.timer);
  return true;
}

std::optional<ParkedOps::Op> ParkedOps::TakeParked(OpId op) {
  std::optional<Op> taken;
  {
    MutexLock lock(mutex_);
    auto it = parked_.find(op);
    if (it == parked_.end()) return std::nullopt;
    taken = std::move(it->second);
    parked_.erase(it);
  }
  timers_.Cancel(taken->timer);
  return taken;
}

void ParkedOps::Fail(OpId op, Error error) {
  const auto taken = TakeParked(op);
  if (!taken) return;
  taken->waiter.fail(std::move(error));
  if (taken->waiter.abort) taken->waiter.abort();
}

void ParkedOps::OnDeadline(OpId op) {
  const auto until = Until(op);
  if (until && *until > std::chrono::steady_clock::now()) {
    MutexLock lock(mutex_);
    const auto it = parked_.find(op);
    if (it != parked_.end()) {
      it->second.timer = timers_.At(*until, [this, op] { OnDeadline(op); });
    }
    return;
  }
  const std::string where = WaitsFor(op);
  Fail(op, MakeError(Code::kUnavailable,
                     "not answered by its deadline, waits for {}", where));
}

std::optional<TimerQueue::Time> ParkedOps::Until(OpId op) const {
  std::function<TimerQueue::Time()> until;  // called without the lock
  {
    MutexLock lock(mutex_);
    const auto it = parked_.find(op);
    if (it == parked_.end()) return std::nullopt;
    until = it->second.waiter.until;
  }
  if (!until) return std::nullopt;
  return until();
}

std::string ParkedOps::WaitsFor(OpId op) const {
  std::function<std::string()> where;  // called without the lock
  {
    MutexLock lock(mutex_);
    const auto it = parked_.find(op);
    if (it == parked_.end()) return "its handler";
    where = it->second.waiter.where;
  }
  return where ? where() : "?";
}

void ParkedOps::Interrupt(OpId op) {
  {
    MutexLock lock(mutex_);
    auto reserved = reserved_.find(op);
    if (reserved != reserved_.end()) {
      reserved->second.interrupted = true;
      return;
    }
  }
  const auto taken = TakeParked(op);
  if (!taken) return;
  // The kernel asks again at once for another reader of the same page: what
  // this one waited must be known by then.
  if (taken->waiter.abort) taken->waiter.abort();
  taken->waiter.fail(Error(Code::kCancelled, "interrupted"));
}

void ParkedOps::Shutdown() {
  std::vector<OpId> ops;
  {
    MutexLock lock(mutex_);
    stopped_ = true;
    ops.reserve(parked_.size());
    for (const auto& [op, parked] : parked_) ops.push_back(op);
  }
  for (OpId op : ops) {
    Fail(op, Error(Code::kIo, "the mount is going away"));
  }
}

size_t ParkedOps::size() {
  MutexLock lock(mutex_);
  return parked_.size();
}

}  // namespace weightfs
