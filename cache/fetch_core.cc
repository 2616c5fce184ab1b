#include "cache/fetch_core.h"

#include "cache/fetch_core_internal.h"
#include "formats/base/log.h"

namespace weightfs {
namespace {

// Stop() leaves an origin that does not end its cancelled fetches, and a disk
// that does not take what was fetched.
constexpr std::chrono::seconds kFetchEndPatience{5};
constexpr std::chrono::milliseconds kWritePatience{500};

FetcherOptions Sane(FetcherOptions options) {
  options.connections = std::max<size_t>(options.connections, 1);
  options.max_request = std::max(options.max_request, kGranuleSize);
  options.min_split =
      std::clamp(options.min_split, kGranuleSize, options.max_request);
  options.disk_reads = std::max<size_t>(options.disk_reads, 1);
  options.disk_writes = std::max<size_t>(options.disk_writes, 1);
  return options;
}

}  // namespace

FetchCore::FetchCore(Origin& origin, TimerQueue& timers, WorkerPool& pool,
                     const FetcherOptions& options)
    : origin_(origin),
      timers_(timers),
      pool_(pool),
      options_(Sane(options)),
      looks_(std::make_shared<PatientCalls>("wfs-look", 2,
                                            options_.disk_patience)),
      claims_(std::make_shared<FetchClaims>(pool, looks_)),
      inline_reads_(options_.disk_patience),
      traffic_(options_) {}

std::shared_ptr<FetchFile> FetchCore::OpenFile(
    const FileInfo& info, std::shared_ptr<CacheFile> cache) {
  auto opened = std::make_shared<FetchFile>(info, std::move(cache),
                                            options_.failure_memory);
  if (opened->cache == nullptr) return opened;
  MutexLock lock(mutex_);
  // One table of granules per cache file. Ids make equal sizes; a caller that
  // mixes files up must not make us hand out another file's bytes.
  const auto [begin, end] = files_.equal_range(opened->cache.get());
  for (auto it = begin; it != end; ++it) {
    auto shared = it->second.lock();
    if (shared && shared->info.id == info.id &&
        shared->info.size == info.size) {
      return shared;
    }
  }
  files_.emplace(opened->cache.get(), opened);
  if (files_.size() > files_prune_at_) {
    std::erase_if(files_, [](const auto& f) { return f.second.expired(); });
    files_prune_at_ = std::max<size_t>(64, 2 * files_.size());
  }
  return opened;
}

void FetchCore::Apply(Effects effects, Where where) {
  for (const FetchId id : effects.cancels) origin_.CancelFetch(id);
  for (const auto& fill : effects.fills) {
    if (fill.op->Fill(fill.granule, fill.granule * kGranuleSize,
                      fill.bytes->view())) {
      effects.ended.push_back(fill.op);
    }
  }
  for (auto& failure : effects.failures) {
    failure.op->End(std::move(failure.error));
    effects.ended.push_back(failure.op);
  }
  if (!effects.ended.empty()) {
    Effects more;
    {
      MutexLock lock(mutex_);
      for (const auto& op : effects.ended) Complete(op, more);
    }
    Apply(std::move(more), where);
  }
  for (size_t i = 0; i < effects.completions && where == Where::kAnyThread;
       ++i) {
    if (!pool_.Submit([self = shared_from_this()] { self->RunCompletion(); })) {
      RunCompletion();
    }
  }
  if (effects.claims) claims_->Run();
  for (const auto& attempt : effects.starts) StartAttempt(attempt);
  for (const auto& read : effects.disk_reads) {
    if (!pool_.Submit(
            [self = shared_from_this(), read] { self->RunDiskRead(read); })) {
      FinishDiskRead(read, read->Granules(), where);
    }
  }
  for (const auto& write : effects.disk_writes) {
    if (!pool_.Submit([self = shared_from_this(), write] {
          self->RunDiskWrite(write);
        })) {
      if (write->claimed) {
        write->file->cache->Unclaim(write->granule, 1);
      }
      FinishDiskWrite(*write, Error(Code::kCancelled, "the pool has stopped"));
    }
  }
  for (size_t i = 0; i < effects.completions && where == Where::kPoolThread;
       ++i) {
    RunCompletion();
  }
}

void FetchCore::StartAttempt(const std::shared_ptr<Attempt>& attempt) {
  Flight& flight = *attempt->flight();
  if (flight.cancelled) {
    attempt->OnDone(Error(Code::kCancelled, "not wanted any more"));
    return;
  }
  const FetchId id = origin_.StartFetch(flight.file->info, attempt->offset(),
                                        attempt->length(), attempt);
  {
    MutexLock lock(mutex_);
    Sharing::Asked(*this, flight);
    if (flight.attempt != attempt.get()) return;  // it is over already
    flight.fetch = id;
    if (!flight.cancelled) return;
  }
  origin_.CancelFetch(id);
}

void FetchCore::Complete(const std::shared_ptr<ReadOp>& op, Effects& effects) {
  if (reads_.erase(op->id()) == 0) return;
  if (op->deadline_timer) timers_.Cancel(*op->deadline_timer);
  Detach(op, effects);
  completions_.push_back(op);
  ++effects.completions;
}

void FetchCore::RunCompletion() {
  std::shared_ptr<ReadOp> op;
  {
    MutexLock lock(mutex_);
    if (completions_.empty()) return;
    op = std::move(completions_.front());
    completions_.pop_front();
    ++completing_;
  }
  op->RunDone();
  op.reset();
  MutexLock lock(mutex_);
  --completing_;
  quiet_.NotifyAll();
}

void FetchCore::RunAllCompletions() {
  for (;;) {
    {
      MutexLock lock(mutex_);
      if (completions_.empty()) return;
    }
    RunCompletion();
  }
}

void FetchCore::CancelEverything(Effects& effects) {
  const Error error = MakeError(Code::kCancelled, "{}: the fetcher was stopped",
                                origin_.name());
  for (const auto& [id, op] : reads_) effects.failures.push_back({op, error});
  for (Queue* queue : {&demand_, &prefetch_}) {
    for (auto& [ticket, item] : *queue) {
      if (item.flight) {
        item.flight->state = Flight::State::kEnded;
        Sharing::Release(*this, *item.flight, effects);
        effects.dropped.push_back(item.flight);
      }
      effects.dropped.push_back(std::move(item.file));
    }
    queue->clear();
  }
  for (auto& [when, flight] : backoff_) {
    flight->state = Flight::State::kEnded;
    Sharing::Release(*this, *flight, effects);
    effects.dropped.push_back(std::move(flight));
  }
  backoff_.clear();
  for (const auto& flight : flying_) {
    if (flight->state == Flight::State::kRunning) {
      flight->state = Flight::State::kEnded;
      flight->cancelled = true;
      Sharing::Release(*this, *flight, effects);
      if (flight->fetch != 0) effects.cancels.push_back(flight->fetch);
    }
  }
  if (wake_) timers_.Cancel(*wake_);
  wake_.reset();
  // What is being written stays; everything else in the tables goes.
  for (auto& [key, weak] : files_) {
    auto file = weak.lock();
    if (!file) continue;
    for (auto& [granule, entry] : file->granules) {
      for (const auto& op : entry.waiters) --op->waits;
      entry.waiters.clear();
      effects.dropped.push_back(std::move(entry.flight));
      effects.dropped.push_back(std::move(entry.elsewhere));
    }
    std::erase_if(file->granules, [](const auto& entry) {
      return entry.second.state != Granule::State::kWriting;
    });
    effects.dropped.push_back(std::move(file));
  }
  prefetch_bytes_ = 0;
  unread_.Shrink(0, effects.dropped);
}

void FetchCore::AwaitQuiet() {
  std::deque<std::shared_ptr<DiskWrite>> unwritten;  // outlives the lock
  std::deque<std::shared_ptr<DiskRead>> unread;
  MutexLock lock(mutex_);
  auto until = Clock::System().Now() + kFetchEndPatience;
  while (!flying_.empty() || active_ > 0) {
    if (!quiet_.WaitUntil(mutex_, until) && Clock::System().Now() >= until) {
      LogError("origin did not end its cancelled fetches name={} fetches={}",
               origin_.name(), flying_.size());
      break;
    }
  }
  until = Clock::System().Now() + kWritePatience;
  while (unwritten_bytes_ > 0) {
    if (!quiet_.WaitUntil(mutex_, until) && Clock::System().Now() >= until) {
      LogWarning("cache did not take fetched bytes in time bytes={}",
                 unwritten_bytes_);
      break;
    }
  }
  phase_ = Phase::kClosed;
  unread.swap(disk_queue_);
  unwritten.swap(write_queue_);
  for (const auto& write : unwritten) {
    write->file->granules.erase(write->granule);
    if (write->claimed) claims_->Release(write->file, {write->granule, 1});
    unwritten_bytes_ -= write->bytes->size();
    stats_.bytes_not_kept += write->bytes->size();
  }
}

void FetchCore::Stop() {
  Effects effects;
  {
    MutexLock lock(mutex_);
    if (phase_ != Phase::kRunning) {
      while (phase_ != Phase::kStopped) quiet_.Wait(mutex_);
      return;
    }
    phase_ = Phase::kStopping;
    CancelEverything(effects);
  }
  Apply(std::move(effects));
  RunAllCompletions();
  AwaitQuiet();
  for (;;) {
    RunAllCompletions();
    MutexLock lock(mutex_);
    if (active_ == 0 && completing_ == 0 && completions_.empty()) {
      phase_ = Phase::kStopped;
      quiet_.NotifyAll();
      return;
    }
    quiet_.Wait(mutex_);
  }
}

FetcherStats FetchCore::stats() const {
  MutexLock lock(mutex_);
  FetcherStats stats = stats_;
  stats.bytes_fetched = bytes_fetched_;
  return stats;
}

}  // namespace weightfs
