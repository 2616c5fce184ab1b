// FetchCore: the queues, attempts and what they bring, retries.

#include <algorithm>
#include <cstring>

#include "cache/fetch_core.h"
#include "cache/fetch_core_internal.h"
#include "formats/base/log.h"

namespace weightfs {
namespace {

// A prefetch that nobody waits for is given up after so many failures.
constexpr int kPrefetchTries = 3;

// An attempt that brought this much, or all it was asked for, made progress:
// its flight's backoff starts anew. Fewer bytes do not, so that a server that
// gives one byte and breaks is not asked again at once for ever.
constexpr uint64_t kProgressBytes = 64 * 1024;

// Attempts that are broken off for being slow: so many, and a twentieth of all.
constexpr uint64_t kFreeOvertakings = 32;
constexpr uint64_t kFetchesPerOvertaking = 20;
constexpr std::chrono::milliseconds kSlowPeriod{250};

// Connections, in units of FetcherOptions::connections, if all of them hang.
constexpr size_t kMostConnections = 4;

// How many granules to fetch where `run` are wanted now, and those after them
// for later: where readers are many, nothing else ever comes to these, and each
// fetch takes the way's time anew. Under the mutex.
uint64_t WithWhatFollows(const FetchFile& file, uint64_t first, uint64_t run,
                         uint64_t worthwhile) {
  auto it = file.granules.lower_bound(first + run);
  while (run < worthwhile && it != file.granules.end() &&
         it->first == first + run &&
         it->second.state == Granule::State::kQueued && !it->second.demand &&
         !it->second.anyway) {
    ++run;
    ++it;
  }
  return run;
}

}  // namespace

bool FetchCore::Attempt::OnData(std::span<const std::byte> data) {
  if (flight_->cancelled || excess_) return false;
  if (data.empty()) return true;
  if (data.size() > length_ - received_) {
    excess_ = true;
    return false;
  }
  flight_->last_bytes = Clock::System().Now();
  const bool progressed = MadeProgress();
  if (received_ == 0) first_bytes_ = flight_->last_bytes;
  received_ += data.size();
  flight_->received = received_;
  if (received_ == data.size() || progressed != MadeProgress()) {
    core_->OnBytes(*this);
  }
  core_->bytes_fetched_ += data.size();
  if (flight_->direct) {
    core_->ConsumeDirect(*flight_, data);
  } else {
    core_->Consume(*flight_, data);
  }
  return !flight_->cancelled;
}

bool FetchCore::Attempt::MadeProgress() const {
  return received_ >= std::min(kProgressBytes, length_);
}

void FetchCore::Attempt::OnDone(Result<> result) {
  if (done_) return;
  done_ = true;
  core_->OnFetchDone(*this, std::move(result));
}

size_t FetchCore::Lively(Clock::Time now) const {
  return static_cast<size_t>(
      std::count_if(flying_.begin(), flying_.end(), [&](const auto& flight) {
        return now - flight->last_bytes.load() < options_.stall_patience;
      }));
}

bool FetchCore::MayStart(Clock::Time now, size_t lively) const {
  return phase_ == Phase::kRunning &&
         flying_.size() < kMostConnections * options_.connections &&
         lively < traffic_.concurrency.limit() &&
         now >= traffic_.health.paused_until() && now >= traffic_.rate.next() &&
         (!traffic_.health.down() || probes_ < OriginHealth::kProbes);
}

void FetchCore::Pump(Effects& effects) {
  if (phase_ != Phase::kRunning) return;
  const Clock::Time now = Clock::System().Now();
  while (!backoff_.empty() && backoff_.begin()->first <= now) {
    const auto flight = std::move(backoff_.begin()->second);
    backoff_.erase(backoff_.begin());
    EnqueueFlight(flight, --front_ticket_);
  }
  Overtake(now, effects);
  for (;;) {
    // Counted once: an attempt's thread may revive a flight meanwhile.
    const size_t lively = Lively(now);
    if (!MayStart(now, lively)) break;
    auto flight = NextFlight(lively);
    if (!flight) break;
    Launch(flight, now, effects);
  }
  traffic_.concurrency.OnLook(now, bytes_fetched_, ConnectionsAreFew(now));
  ArmWake(now);
}

// More connections would be used, if there were any.
bool FetchCore::ConnectionsAreFew(Clock::Time now) const {
  return !traffic_.health.down() && now >= traffic_.health.paused_until() &&
         now >= traffic_.rate.next() &&
         (!demand_.empty() || (!prefetch_.empty() && HasRoomAhead()));
}

// What is fetched for later is kept in memory until the disk takes it.
bool FetchCore::HasRoomAhead() const {
  uint64_t coming = 0;
  for (const auto& flight : flying_) {
    if (flight->prefetch) {
      coming += flight->end - flight->published;
    }
  }
  return unwritten_bytes_ + coming < options_.max_backlog_bytes;
}

// Breaks off attempts that are much slower than others were. Their flights go
// on from where they are; see OnFetchDone.
void FetchCore::Overtake(Clock::Time now, Effects& effects) {
  if (traffic_.health.down()) return;
  for (const auto& flight : flying_) {
    if (!flight->MayBeOvertaken() || flight->look_at > now) continue;
    flight->look_at = now + kSlowPeriod;
    const auto& attempt = static_cast<const Attempt&>(*flight->attempt);
    if (flight->fetch == 0 ||
        !traffic_.pace.IsSlow(now - attempt.began(), flight->received,
                              attempt.length()) ||
        stats_.overtaken >=
            kFreeOvertakings + stats_.fetches / kFetchesPerOvertaking) {
      continue;
    }
    LogDebug("fetch is slow, to be repeated file={} position={} received={}",
             flight->file->info.path, attempt.offset(),
             flight->received.load());
    ++stats_.overtaken;
    ++flight->overtakings;
    flight->overtaken = true;
    effects.cancels.push_back(flight->fetch);
  }
}

// Demand first; prefetch only while enough connections stay free for demand.
std::shared_ptr<Flight> FetchCore::NextFlight(size_t lively) {
  Queue* queue = &demand_;
  const size_t limit = traffic_.concurrency.limit();
  size_t free = limit - lively;
  if (demand_.empty()) {
    const size_t busy = flying_.size();
    const size_t reserve = traffic_.Reserve();
    if (prefetch_.empty() || busy + reserve >= limit || !HasRoomAhead()) {
      return nullptr;
    }
    queue = &prefetch_;
    free = limit - busy - reserve;
  }
  if (traffic_.health.down()) free = 1;
  const QueueItem& item = queue->begin()->second;
  if (!item.flight) return MakeFlight(item, *queue, free);
  auto flight = item.flight;
  queue->erase(queue->begin());
  return flight;
}

// A flight of the first granule of `queue` and of those after it that are in
// the same queue: the run is spread over the free connections. Demand takes
// along what is to be fetched behind it.
std::shared_ptr<Flight> FetchCore::MakeFlight(const QueueItem& item,
                                              Queue& queue, size_t free) {
  const auto file = item.file;
  const uint64_t first = item.granule;
  const bool demand = &queue == &demand_;
  uint64_t largest = options_.max_request;
  if (!demand) {
    largest = traffic_.pace.EfficientBytes(
        largest, std::max(largest, options_.max_ahead_request));
  }
  const uint64_t most =
      traffic_.rate.LargestFetch(kGranuleSize, largest) / kGranuleSize;
  const auto begin = file->granules.find(first);
  uint64_t run = 0;
  for (auto it = begin;
       it != file->granules.end() && run < most * free &&
       it->first == first + run &&
       it->second.state == Granule::State::kQueued &&
       it->second.demand == demand && it->second.anyway == begin->second.anyway;
       ++it) {
    ++run;
  }
  const uint64_t least = std::min(options_.min_split / kGranuleSize, run);
  uint64_t piece = std::min(std::max((run + free - 1) / free, least), most);
  if (demand && piece == run && HasRoomAhead()) {
    piece = WithWhatFollows(
        *file, first, run,
        traffic_.pace.EfficientBytes(kGranuleSize, most * kGranuleSize) /
            kGranuleSize);
  }
  auto flight = std::make_shared<Flight>(file, first * kGranuleSize,
                                         file->GranuleEnd(first + piece - 1));
  flight->anyway = begin->second.anyway;
  auto it = begin;
  for (uint64_t i = 0; i < piece; ++i, ++it) {
    Granule& entry = it->second;
    (entry.demand ? demand_ : prefetch_).erase(entry.ticket);
    entry.state = Granule::State::kFlying;
    entry.flight = flight;
    flight->waiters += entry.waiters.size();
    flight->prefetch |= entry.prefetch;
  }
  return flight;
}

void FetchCore::Launch(const std::shared_ptr<Flight>& flight, Clock::Time now,
                       Effects& effects) {
  flight->state = Flight::State::kRunning;
  flight->last_bytes = now;
  flight->status = 0;
  flight->received = 0;
  flight->overtaken = false;
  flight->look_at = Clock::Time::max();
  const bool probe = traffic_.health.down();
  if (probe) ++probes_;
  auto attempt =
      std::make_shared<Attempt>(shared_from_this(), flight, now, probe);
  flight->attempt = attempt.get();
  flight->fetch = 0;
  flying_.insert(flight);
  // Now, and not once its claim is there: more are launched meanwhile.
  traffic_.rate.OnStart(now, flight->end - flight->position);
  if (!Sharing::Ask(*this, attempt, effects)) Begin(attempt, effects);
}

void FetchCore::Begin(const std::shared_ptr<Attempt>& attempt,
                      Effects& effects) {
  if (attempt->flight()->attempts++ > 0) ++stats_.retries;
  ++stats_.fetches;
  const Clock::Time now = Clock::System().Now();
  attempt->flight()->last_bytes = now;
  attempt->flight()->look_at =
      now + options_.slow_patience * (1 << attempt->flight()->overtakings);
  attempt->Begin(now);
  effects.starts.push_back(attempt);
}

void FetchCore::EnqueueFlight(const std::shared_ptr<Flight>& flight,
                              int64_t ticket) {
  flight->state = Flight::State::kQueued;
  flight->in_demand = flight->waiters > 0;
  flight->ticket = ticket;
  (flight->in_demand ? demand_ : prefetch_)
      .emplace(ticket, QueueItem{nullptr, 0, flight});
}

// Wakes the pump for the first retry, at the end of a pause, or when a fetch
// may have stalled or be slow.
void FetchCore::ArmWake(Clock::Time now) {
  auto next = Clock::Time::max();
  if (!backoff_.empty()) next = backoff_.begin()->first;
  const bool queued = !demand_.empty() || !prefetch_.empty();
  const auto may =
      std::max(traffic_.health.paused_until(), traffic_.rate.next());
  if (queued && may > now) next = std::min(next, may);
  // Demand that waits for a connection gets one once a fetch stalls.
  if (!demand_.empty() && Lively(now) >= traffic_.concurrency.limit()) {
    for (const auto& flight : flying_) {
      const auto stalled = flight->last_bytes.load() + options_.stall_patience;
      if (stalled > now) next = std::min(next, stalled);
    }
  }
  if (!traffic_.health.down()) {
    for (const auto& flight : flying_) {
      if (flight->MayBeOvertaken()) next = std::min(next, flight->look_at);
    }
  }
  if (next == Clock::Time::max() || (wake_ && wake_->first <= next)) return;
  if (wake_) timers_.Cancel(*wake_);
  wake_ = timers_.At(next, [weak = weak_from_this()] {
    if (auto self = weak.lock()) self->OnWake();
  });
}

void FetchCore::OnWake() {
  const Activity activity(*this);
  if (!activity.entered()) return;
  Effects effects;
  {
    MutexLock lock(mutex_);
    // A task that Cancel() came too late for may find a newer timer here; that
    // one then finds nothing to do.
    wake_.reset();
    Pump(effects);
  }
  Apply(std::move(effects));
}

// Its first bytes, and the one that makes them progress.
void FetchCore::OnBytes(const Attempt& attempt) {
  Effects effects;
  {
    MutexLock lock(mutex_);
    const bool was_down = traffic_.health.down();
    if (attempt.MadeProgress()) {
      traffic_.health.OnProgress(attempt.started());
    } else {
      traffic_.health.OnBytes(attempt.started());
    }
    if (was_down && !traffic_.health.down()) Pump(effects);
  }
  Apply(std::move(effects));
}

void FetchCore::Consume(Flight& flight, std::span<const std::byte> data) {
  while (!data.empty()) {
    const uint64_t granule = flight.position / kGranuleSize;
    const uint64_t begin = granule * kGranuleSize;
    if (!flight.filling) {
      flight.filling = std::make_shared<GranuleBytes>(
          flight.file->GranuleEnd(granule) - begin);
    }
    const size_t within = flight.position - begin;
    const size_t n = std::min(data.size(), flight.filling->size() - within);
    std::memcpy(flight.filling->buffer.data() + within, data.data(), n);
    flight.position += n;
    data = data.subspan(n);
    if (within + n == flight.filling->size()) {
      Publish(flight, granule, std::move(flight.filling));
      flight.filling = nullptr;
    }
  }
}

void FetchCore::ConsumeDirect(Flight& flight, std::span<const std::byte> data) {
  Effects effects;
  if (flight.direct->FillRaw(flight.position, data)) {
    effects.ended.push_back(flight.direct);
  }
  flight.position += data.size();
  if (flight.position == flight.end) {
    MutexLock lock(mutex_);
    flight.published = flight.end;
    flight.state = Flight::State::kEnded;
  }
  Apply(std::move(effects));
}

// A granule is complete: hands it to its waiters and to the disk.
void FetchCore::Publish(Flight& flight, uint64_t granule,
                        std::shared_ptr<const GranuleBytes> bytes) {
  Effects effects;
  {
    MutexLock lock(mutex_);
    if (flight.state != Flight::State::kRunning) return;  // dropped
    auto& file = *flight.file;
    Granule& entry = file.granules.find(granule)->second;
    const std::shared_ptr<Flight> self = entry.flight;
    for (auto& op : entry.waiters) {
      --op->waits;
      --flight.waiters;
      entry.read += op->BytesOf(granule);
      effects.fills.push_back({std::move(op), granule, bytes});
    }
    entry.waiters.clear();
    Count(file, granule, entry, false);
    file.failures.Forget(granule * kGranuleSize, file.GranuleEnd(granule));
    flight.published = file.GranuleEnd(granule);
    if (QueueDiskWrite(flight, granule, bytes, effects.fills.empty(),
                       effects)) {
      entry.state = Granule::State::kWriting;
      entry.bytes = std::move(bytes);
      entry.flight = nullptr;
    } else {
      stats_.bytes_not_kept += bytes->size();
      if (flight.claimed) claims_->Release(flight.file, {granule, 1});
      effects.claims |= flight.claimed;
      Erase(file, granule, effects);
    }
    if (flight.published == flight.end) {
      flight.state = Flight::State::kEnded;
    } else if (flight.waiters == 0) {
      Abandoned(self, effects);
    }
    PumpDisk(effects);
  }
  Apply(std::move(effects));
}

void FetchCore::OnFetchDone(const Attempt& attempt, Result<> result) {
  const Activity activity(*this);
  if (!activity.entered()) return;
  const std::shared_ptr<Flight>& flight = attempt.flight();
  Effects effects;
  {
    MutexLock lock(mutex_);
    End(attempt);
    if (result.has_value() && attempt.received() == attempt.length()) {
      traffic_.pace.OnEnd(attempt.first_bytes() - attempt.began(),
                          attempt.received(),
                          Clock::System().Now() - attempt.first_bytes());
    }
    const bool overtaken = std::exchange(flight->overtaken, false) &&
                           !result.has_value() && !attempt.excess() &&
                           result.error().code() == Code::kCancelled;
    if (overtaken && flight->state == Flight::State::kRunning) {
      EnqueueFlight(flight, --front_ticket_);
    } else if (flight->state == Flight::State::kRunning) {
      if (result.has_value() || attempt.excess()) {
        result = MakeError(
            Code::kUnavailable, "{} bytes {}-{}: {} bytes, {} asked for",
            flight->file->info.path, attempt.offset(),
            attempt.offset() + attempt.length() - 1,
            attempt.excess() ? "more than" : std::to_string(attempt.received()),
            attempt.length());
      }
      if (result.error().code() == Code::kUnavailable) {
        Retry(flight, attempt, std::move(result).error(), effects);
      } else {
        Fail(*flight, result.error(), effects);
      }
    }
    Pump(effects);
    quiet_.NotifyAll();
  }
  Apply(std::move(effects));
}

// The attempt is over, whatever becomes of its flight.
void FetchCore::End(const Attempt& attempt) {
  const std::shared_ptr<Flight>& flight = attempt.flight();
  Sharing::Asked(*this, *flight);
  flying_.erase(flight);
  if (attempt.probe()) --probes_;
  flight->attempt = nullptr;
  flight->fetch = 0;
}

void FetchCore::Retry(const std::shared_ptr<Flight>& flight,
                      const Attempt& attempt, Error error, Effects& effects) {
  const Clock::Time now = Clock::System().Now();
  const bool progress = attempt.MadeProgress();
  flight->failures = progress ? 1 : flight->failures + 1;
  const auto wait =
      traffic_.health.OnFailure(now, flight->failures, error, progress);
  LogDebug(
      "fetch failed, to be repeated file={} failures={} wait_ms={} "
      "error={}",
      flight->file->info.path, flight->failures,
      std::chrono::duration_cast<std::chrono::milliseconds>(wait).count(),
      error.message());
  if (flight->status == 429 || flight->status == 503) {
    traffic_.concurrency.OnRefused(now);
  }
  last_error_ = error;
  flight->last_error = std::move(error);
  if (flight->waiters == 0 &&
      (!flight->prefetch || flight->failures >= kPrefetchTries)) {
    Drop(flight, effects);
    return;
  }
  flight->state = Flight::State::kBackoff;
  backoff_.emplace(now + wait, flight);
}

// Takes what a flight did not bring out of the table. No waiters are left.
void FetchCore::EraseRest(Flight& flight, Effects& effects) {
  if (flight.direct) return;
  Sharing::Release(*this, flight, effects);
  for (uint64_t g = flight.published / kGranuleSize;
       g * kGranuleSize < flight.end; ++g) {
    Erase(*flight.file, g, effects);
  }
}

void FetchCore::Fail(Flight& flight, const Error& cause, Effects& effects) {
  const Error error =
      MakeError(cause.code(), "{}, tier {}, {} attempts", cause.message(),
                origin_.name(), flight.attempts);
  LogDebug("fetch failed file={} error={}", flight.file->info.path,
           error.message());
  flight.file->failures.Add(flight.published, flight.end, Clock::System().Now(),
                            RecentFailures::Duration::max(), error);
  if (flight.direct) effects.failures.push_back({flight.direct, error});
  if (!flight.direct) {
    for (uint64_t g = flight.published / kGranuleSize;
         g * kGranuleSize < flight.end; ++g) {
      Granule& entry = flight.file->granules.find(g)->second;
      for (auto& op : entry.waiters) {
        --op->waits;
        effects.failures.push_back({std::move(op), error});
      }
      entry.waiters.clear();
    }
  }
  EraseRest(flight, effects);
  flight.waiters = 0;
  flight.state = Flight::State::kEnded;
}

void FetchCore::Drop(const std::shared_ptr<Flight>& flight, Effects& effects) {
  switch (flight->state) {
    case Flight::State::kQueued:
      (flight->in_demand ? demand_ : prefetch_).erase(flight->ticket);
      break;
    case Flight::State::kBackoff:
      std::erase_if(backoff_,
                    [&](const auto& item) { return item.second == flight; });
      break;
    case Flight::State::kRunning:
      flight->cancelled = true;
      if (flight->fetch != 0) effects.cancels.push_back(flight->fetch);
      break;
    case Flight::State::kEnded:
      break;
  }
  EraseRest(*flight, effects);
  flight->state = Flight::State::kEnded;
  effects.dropped.push_back(flight);
}

}  // namespace weightfs
