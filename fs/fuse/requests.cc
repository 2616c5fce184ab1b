#include "fs/fuse/requests.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "formats/base/log.h"
#include "formats/base/worker_pool.h"

namespace weightfs {
namespace {

// How often the watchdog looks while there are requests.
constexpr std::chrono::milliseconds kPace{250};

double Seconds(Clock::Time::duration time) {
  return std::chrono::duration<double>(time).count();
}

}  // namespace

Requests::Requests(Vfs& vfs, const RequestTimes& times,
                   std::function<void(RequestId, const Request&)> read)
    : vfs_(vfs),
      times_(times),
      read_(std::move(read)),
      watchdog_(StartThread("wfs-requests", [this] { Watch(); })) {}

std::pair<RequestId, OpId> Requests::Add(Request request,
                                         fuse_interrupt_func_t interrupt) {
  request.op = vfs_.NewOp();
  request.started = Clock::System().Now();
  // An index may be needed before bytes can be read.
  const auto limit = request.size > 0 ? std::max(times_.read, times_.metadata)
                                      : times_.metadata;
  request.deadline = request.started + limit + times_.grace;
  // NOLINTNEXTLINE(performance-no-int-to-ptr): an id, not a pointer
  void* const data = reinterpret_cast<void*>(request.op);
  fuse_req_interrupt_func(request.req, interrupt, data);
  MutexLock lock(mutex_);
  const RequestId id = next_++;
  const OpId op = request.op;
  waiting_.emplace(id, request);
  if (std::exchange(idle_, false)) work_.NotifyAll();
  return {id, op};
}

fuse_req_t Requests::Take(RequestId id) {
  MutexLock lock(mutex_);
  const auto it = waiting_.find(id);
  if (it == waiting_.end()) return nullptr;
  fuse_req* const req = it->second.req;
  waiting_.erase(it);
  ++answering_;
  return req;
}

void Requests::Answered() {
  MutexLock lock(mutex_);
  --answering_;
  if (answering_ == 0 && waiting_.empty()) done_.NotifyAll();
}

bool Requests::LeaveResident(RequestId id) {
  MutexLock lock(mutex_);
  const auto it = waiting_.find(id);
  return it != waiting_.end() && std::exchange(it->second.resident, false);
}

RequestTotals Requests::totals() {
  MutexLock lock(mutex_);
  RequestTotals totals;
  totals.waiting = waiting_.size();
  totals.late = late_;
  const auto now = Clock::System().Now();
  for (const auto& [id, request] : waiting_) {
    totals.oldest_seconds =
        std::max(totals.oldest_seconds, Seconds(now - request.started));
  }
  return totals;
}

void Requests::FailAll() {
  std::vector<Request> all;
  {
    MutexLock lock(mutex_);
    for (const auto& [id, request] : waiting_) all.push_back(request);
    waiting_.clear();
    answering_ += all.size();
  }
  for (const Request& request : all) {
    fuse_reply_err(request.req, EIO);
    Answered();
  }
}

bool Requests::WaitIdle(std::chrono::milliseconds limit) {
  const auto deadline = Clock::System().Now() + limit;
  MutexLock lock(mutex_);
  while (answering_ != 0 || !waiting_.empty()) {
    if (!done_.WaitUntil(mutex_, deadline) &&
        Clock::System().Now() >= deadline) {
      return answering_ == 0 && waiting_.empty();
    }
  }
  return true;
}

void Requests::Stop() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  work_.NotifyAll();
  if (watchdog_.joinable()) watchdog_.join();
}

void Requests::Watch() {
  for (;;) {
    std::vector<std::pair<RequestId, Request>> due;
    std::vector<std::pair<RequestId, Request>> stuck;
    {
      MutexLock lock(mutex_);
      idle_ = waiting_.empty();
      while (idle_ && !stopping_) work_.Wait(mutex_);
      const auto next = Clock::System().Now() + kPace;
      while (!stopping_ && work_.WaitUntil(mutex_, next)) {
      }
      if (stopping_) return;
      const auto now = Clock::System().Now();
      for (auto& [id, request] : waiting_) {
        if (request.deadline <= now) {
          due.emplace_back(id, request);
        } else if (request.resident &&
                   request.started + times_.resident <= now) {
          request.resident = false;
          stuck.emplace_back(id, request);
        }
      }
    }
    for (const auto& [id, request] : stuck) RestartRead(id, request);
    for (const Request& request : TakeLate(due)) FailLate(request);
  }
}

// Of those whose time is over, takes out the ones that get no more of it.
std::vector<Requests::Request> Requests::TakeLate(
    const std::vector<std::pair<RequestId, Request>>& due) {
  std::vector<Request> late;
  for (const auto& [id, request] : due) {
    const auto until = request.resident ? std::nullopt : vfs_.Until(request.op);
    MutexLock lock(mutex_);
    const auto it = waiting_.find(id);
    if (it == waiting_.end()) continue;
    if (until && *until + times_.grace > Clock::System().Now()) {
      it->second.deadline = *until + times_.grace;
      continue;
    }
    late.push_back(it->second);
    waiting_.erase(it);
    ++answering_;
    ++late_;
  }
  return late;
}

void Requests::RestartRead(RequestId id, const Request& request) {
  LogWarning(
      "the cache does not answer, reading without it op={} path={} "
      "range=[{}, +{})",
      request.operation, vfs_.Describe(request.node), request.offset,
      request.size);
  read_(id, request);
}

void Requests::FailLate(const Request& request) {
  // First of all: what comes next takes locks that a stuck thread may hold.
  fuse_reply_err(request.req, EIO);
  Answered();
  const std::string where =
      request.resident ? "resident memory" : vfs_.WaitsFor(request.op);
  LogError(
      "not answered by its deadline, given up op={} path={} node={:#x} "
      "range=[{}, +{}) age={:.1f}s waits_for={}",
      request.operation, vfs_.Describe(request.node), request.node,
      request.offset, request.size,
      Seconds(Clock::System().Now() - request.started), where);
  // Ends what is left of it; its answer is dropped.
  vfs_.Interrupt(request.op);
  if (request.resident) vfs_.DropOp(request.op);
}

}  // namespace weightfs
