#include "fs/parked_ops.h"

#include <utility>
#include <vector>

namespace weightfs {

OpId ParkedOps::Reserve() {
  MutexLock lock(mutex_);
  const OpId op = next_++;
  reserved_.emplace(op, false);
  return op;
}

void ParkedOps::Release(OpId op) {
  MutexLock lock(mutex_);
  reserved_.erase(op);
}

bool ParkedOps::Park(OpId op, TimerQueue::Time deadline,
                     std::function<void(Error)> fail,
                     std::function<void()> abort) {
  bool refused = false;
  {
    MutexLock lock(mutex_);
    auto reserved = reserved_.find(op);
    refused = stopped_ || reserved == reserved_.end() || reserved->second;
    if (reserved != reserved_.end()) reserved_.erase(reserved);
    if (!refused) {
      Op parked{std::move(fail), std::move(abort), {}};
      parked.timer = timers_.At(deadline, [this, op] {
        Fail(op, Error(Code::kUnavailable, "not answered by its deadline"));
      });
      parked_.emplace(op, std::move(parked));
      return true;
    }
  }
  fail(Error(Code::kCancelled, "interrupted"));
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
    if (reserve) reserved_.emplace(op, false);
  }
  timers_.Cancel(taken.timer);
  return true;
}

void ParkedOps::Fail(OpId op, Error error) {
  Op taken;
  {
    MutexLock lock(mutex_);
    auto it = parked_.find(op);
    if (it == parked_.end()) return;
    taken = std::move(it->second);
    parked_.erase(it);
  }
  timers_.Cancel(taken.timer);
  taken.fail(std::move(error));
  if (taken.abort) taken.abort();
}

void ParkedOps::Interrupt(OpId op) {
  {
    MutexLock lock(mutex_);
    auto reserved = reserved_.find(op);
    if (reserved != reserved_.end()) {
      reserved->second = true;
      return;
    }
  }
  Fail(op, Error(Code::kCancelled, "interrupted"));
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
