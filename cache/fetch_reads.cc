// FetchCore: reads, the table of granules, prefetch, deadlines.

#include <algorithm>
#include <cstring>

#include "cache/fetch_core.h"
#include "cache/fetch_core_internal.h"
#include "formats/base/checked.h"

namespace weightfs {
namespace {

// A flight that nobody waits for any more is ended if more than this is left of
// it, and else let run: its bytes are nearly here, and the connection is kept.
constexpr uint64_t kFinishBytes = 2 * kGranuleSize;

// How often a look at Has() that was overtaken is repeated. After that a
// granule may be fetched twice, which is harmless.
constexpr int kMaxLooks = 4;

// Has() of the granules first..last, stopping after `missing` absent ones.
std::vector<bool> LookAtCache(const FetchFile& file, uint64_t first,
                              uint64_t last, uint64_t missing) {
  std::vector<bool> has;
  has.reserve(last - first + 1);
  for (uint64_t g = first; g <= last && missing > 0; ++g) {
    has.push_back(file.cache->Has(g));
    if (!has.back()) --missing;
  }
  return has;
}

std::string Range(const ReadOp& op) {
  return fmt::format("{} bytes {}-{}", op.file()->info.path, op.offset(),
                     op.end() - 1);
}

// Why the read need not be tried: null if it has to be. Under the mutex.
const Error* FailedLately(const ReadOp& op, const std::vector<bool>& has) {
  FetchFile& file = *op.file();
  const Clock::Time now = Clock::System().Now();
  if (file.cache == nullptr) {
    return file.failures.Find(op.offset(), op.end(), now, op.patience());
  }
  for (uint64_t g = op.first_granule(); g <= op.last_granule(); ++g) {
    if (has[g - op.first_granule()]) continue;
    const auto it = file.granules.find(g);
    if (it != file.granules.end() &&
        it->second.state == Granule::State::kWriting) {
      continue;
    }
    const uint64_t begin = std::max(op.offset(), g * kGranuleSize);
    const uint64_t end = std::min(op.end(), file.GranuleEnd(g));
    if (const Error* error =
            file.failures.Find(begin, end, now, op.patience())) {
      return error;
    }
  }
  return nullptr;
}

// How long others waited, just before, for what the read wants. Under the
// mutex.
Clock::Time::duration WaitedBefore(const ReadOp& op,
                                   const std::vector<bool>& has) {
  RecentFailures& failures = op.file()->failures;
  const Clock::Time now = Clock::System().Now();
  if (has.empty()) return failures.Waited(op.offset(), op.end(), now);
  Clock::Time::duration most{};
  for (uint64_t g = op.first_granule(); g <= op.last_granule(); ++g) {
    if (has[g - op.first_granule()]) continue;
    most = std::max(
        most, failures.Waited(g * kGranuleSize, (g + 1) * kGranuleSize, now));
  }
  return most;
}

// All of it is on its way, as the table says: the cache need not be asked.
// Under the mutex.
bool IsTracked(const ReadOp& op) {
  const auto& granules = op.file()->granules;
  auto it = granules.find(op.first_granule());
  for (uint64_t g = op.first_granule(); g <= op.last_granule(); ++g, ++it) {
    if (it == granules.end() || it->first != g) return false;
  }
  return true;
}

// Of a read that is interrupted. Under the mutex.
void RememberWait(const ReadOp& op) {
  const Clock::Time now = Clock::System().Now();
  op.file()->failures.AddWait(op.offset(), op.end(), now,
                              now - op.started() + op.waited_before);
}

// Of all that the read still lacks. Under the mutex.
void RememberFailure(const ReadOp& op, const Error& error) {
  FetchFile& file = *op.file();
  const Clock::Time now = Clock::System().Now();
  if (file.cache == nullptr) {
    file.failures.Add(op.offset(), op.end(), now, op.patience(), error);
    return;
  }
  for (uint64_t g = op.first_granule(); g <= op.last_granule();) {
    uint64_t end = g;
    while (end <= op.last_granule() && !op.Has(end)) ++end;
    file.failures.Add(g * kGranuleSize, end * kGranuleSize, now, op.patience(),
                      error);
    g = end + 1;
  }
}

}  // namespace

// A look reads a mapped file, which blocks where a page of it is to be read
// from a disk that hangs. Nothing if the cache does not answer.
std::optional<std::vector<bool>> FetchCore::Look(
    const std::shared_ptr<FetchFile>& file, uint64_t first, uint64_t last,
    uint64_t missing) {
  auto has = std::make_shared<std::vector<bool>>();
  const bool answered = looks_->Run([file, first, last, missing, has] {
    *has = LookAtCache(*file, first, last, missing);
  });
  if (!answered) return std::nullopt;
  return std::move(*has);
}

// 0 where the cache does not answer.
double FetchCore::CachedFraction(const std::shared_ptr<FetchFile>& file) {
  auto fraction = std::make_shared<double>(0);
  const bool answered = looks_->Run(
      [file, fraction] { *fraction = file->cache->CachedFraction(); });
  return answered ? *fraction : 0;
}

ReadId FetchCore::StartRead(const std::shared_ptr<FetchFile>& file,
                            uint64_t offset, std::span<std::byte> out,
                            const ReadOptions& options, Object::Done done) {
  const ReadId id = next_read_++;
  const bool fits = RangeFits(offset, out.size(), file->info.size);
  if (!fits) out = {};
  auto op = std::make_shared<ReadOp>(id, file, fits ? offset : 0, out,
                                     options.deadline, std::move(done));
  if (!fits) {
    op->End(MakeError(Code::kInvalid, "{}: a read past its {} bytes",
                      file->info.path, file->info.size));
  } else if (out.empty()) {
    op->End({});
  }
  const bool planned = !op->ended();

  const Activity activity(*this);
  Effects effects;
  bool accepted = false;
  for (int look = 0; activity.entered(); ++look) {
    const uint64_t landed = file->landed;
    std::vector<bool> has;
    bool asks = planned && file->cache != nullptr;
    if (asks) {
      has.resize(op->last_granule() - op->first_granule() + 1);
      MutexLock lock(mutex_);
      asks = !IsTracked(*op);
    }
    if (asks) {
      auto seen =
          Look(file, op->first_granule(), op->last_granule(), UINT64_MAX);
      if (seen) has = std::move(*seen);
    }
    MutexLock lock(mutex_);
    if (look < kMaxLooks && landed != file->landed) continue;
    if (phase_ != Phase::kRunning) break;
    accepted = true;
    reads_.emplace(id, op);
    if (!planned) {
      Complete(op, effects);
      break;
    }
    if (options.deadline != Clock::Time::max()) {
      op->waited_before = WaitedBefore(*op, has);
      op->deadline_timer = timers_.At(options.deadline - op->waited_before,
                                      [weak = weak_from_this(), id] {
                                        if (auto self = weak.lock())
                                          self->OnDeadline(id);
                                      });
    }
    if (const Error* failed = FailedLately(*op, has)) {
      effects.failures.push_back({op, *failed});
    } else if (file->cache) {
      Plan(op, has, effects);
    } else {
      PlanDirect(op);
    }
    Pump(effects);
    PumpDisk(effects);
    break;
  }
  if (accepted) {
    Apply(std::move(effects));
  } else {
    op->End(MakeError(Code::kCancelled, "{}: the fetcher was stopped",
                      file->info.path));
    op->RunDone();
  }
  return id;
}

void FetchCore::Plan(const std::shared_ptr<ReadOp>& op,
                     const std::vector<bool>& has, Effects& effects) {
  const auto& granules = op->file()->granules;
  const uint64_t first = op->first_granule();
  const uint64_t last = op->last_granule();
  const bool stuck = DiskIsStuck(Clock::System().Now());
  for (uint64_t g = first; g <= last;) {
    if (!has[g - first] || granules.contains(g) || stuck) {
      if (has[g - first] && stuck) {
        ++stats_.cache_read_failures;
        Sharing::WantAnyway(*this, op, g++, effects);
      } else {
        Want(op, g++, effects);
      }
      continue;
    }
    if (auto bytes = unread_.Read(*op->file(), g, op->BytesOf(g))) {
      effects.fills.push_back({op, g++, std::move(bytes)});
      continue;
    }
    uint64_t end = g + 1;
    while (end <= last && end - g < kDiskReadGranules && has[end - first] &&
           !granules.contains(end) && !op->file()->unread.contains(end)) {
      ++end;
    }
    QueueDiskRead(op, g, end - 1);
    g = end;
  }
}

void FetchCore::PlanDirect(const std::shared_ptr<ReadOp>& op) {
  const uint64_t length = op->end() - op->offset();
  const size_t limit = traffic_.concurrency.limit();
  const uint64_t free = limit - std::min(limit - 1, flying_.size());
  const uint64_t most =
      traffic_.rate.LargestFetch(kGranuleSize, options_.max_request);
  const uint64_t piece = std::clamp((length + free - 1) / free,
                                    std::min(options_.min_split, most), most);
  for (uint64_t begin = op->offset(); begin < op->end(); begin += piece) {
    auto flight = std::make_shared<Flight>(op->file(), begin,
                                           std::min(begin + piece, op->end()));
    flight->direct = op;
    flight->waiters = 1;
    op->flights.push_back(flight);
    EnqueueFlight(flight, back_ticket_++);
  }
}

void FetchCore::Want(const std::shared_ptr<ReadOp>& op, uint64_t granule,
                     Effects& effects) {
  const auto& file = op->file();
  auto [it, added] = file->granules.try_emplace(granule);
  Granule& entry = it->second;
  if (added) {
    entry.waiters.push_back(op);
    ++op->waits;
    Enqueue(file, granule, entry, demand_, back_ticket_++);
  } else if (entry.state == Granule::State::kWriting) {
    effects.fills.push_back({op, granule, entry.bytes});
    entry.read += op->BytesOf(granule);
    // Whoever reads on wants the end of it.
    if (unwritten_bytes_ > options_.max_unwritten_bytes &&
        op->end() >= file->GranuleEnd(granule)) {
      Unqueue(file, granule, effects);
    }
  } else if (std::find(entry.waiters.begin(), entry.waiters.end(), op) ==
             entry.waiters.end()) {
    Join(op, granule, entry);
  }
}

// `entry` is not kWriting. Promotes what only prefetch wanted so far.
void FetchCore::Join(const std::shared_ptr<ReadOp>& op, uint64_t granule,
                     Granule& entry) {
  entry.waiters.push_back(op);
  ++op->waits;
  Count(*op->file(), granule, entry, false);
  if (entry.state == Granule::State::kQueued) {
    if (entry.demand) return;
    prefetch_.erase(entry.ticket);
    Enqueue(op->file(), granule, entry, demand_, back_ticket_++);
    return;
  }
  if (entry.state == Granule::State::kElsewhere) {
    Sharing::Hurry(*entry.elsewhere, *op, Clock::System().Now());
    return;
  }
  Flight& flight = *entry.flight;
  ++flight.waiters;
  if (flight.state == Flight::State::kQueued && !flight.in_demand) {
    prefetch_.erase(flight.ticket);
    EnqueueFlight(entry.flight, back_ticket_++);
  }
}

void FetchCore::Enqueue(const std::shared_ptr<FetchFile>& file,
                        uint64_t granule, Granule& entry, Queue& queue,
                        int64_t ticket) {
  entry.state = Granule::State::kQueued;
  entry.demand = &queue == &demand_;
  entry.ticket = ticket;
  queue.emplace(entry.ticket, QueueItem{file, granule, nullptr});
}

void FetchCore::Count(const FetchFile& file, uint64_t granule, Granule& entry,
                      bool counted) {
  if (entry.counted == counted) return;
  entry.counted = counted;
  const uint64_t bytes = file.GranuleEnd(granule) - granule * kGranuleSize;
  prefetch_bytes_ = counted ? prefetch_bytes_ + bytes : prefetch_bytes_ - bytes;
}

// Takes the read out of all that it waits for.
void FetchCore::Detach(const std::shared_ptr<ReadOp>& op, Effects& effects) {
  if (op->waits > 0) {
    const auto& file = op->file();
    for (uint64_t g = op->first_granule();
         g <= op->last_granule() && op->waits > 0; ++g) {
      auto it = file->granules.find(g);
      if (it == file->granules.end()) continue;
      Granule& entry = it->second;
      if (std::erase(entry.waiters, op) == 0) continue;
      --op->waits;
      if (entry.state == Granule::State::kFlying) --entry.flight->waiters;
      if (entry.waiters.empty()) Unwanted(file, g, effects);
    }
  }
  for (auto& flight : op->flights) {
    if (flight->state != Flight::State::kEnded) Drop(flight, effects);
    effects.dropped.push_back(std::move(flight));
  }
  op->flights.clear();
}

// The last waiter of a granule went. What prefetch asked for stays, behind
// demand again.
void FetchCore::Unwanted(const std::shared_ptr<FetchFile>& file,
                         uint64_t granule, Effects& effects) {
  Granule& entry = file->granules.find(granule)->second;
  if (entry.prefetch) Count(*file, granule, entry, true);
  if (entry.state == Granule::State::kQueued) {
    effects.dropped.push_back(std::move(demand_[entry.ticket].file));
    demand_.erase(entry.ticket);
    if (entry.prefetch) {
      Enqueue(file, granule, entry, prefetch_, back_ticket_++);
    } else {
      Erase(*file, granule, effects);
    }
    return;
  }
  if (entry.state == Granule::State::kElsewhere) {
    Erase(*file, granule, effects);
    return;
  }
  const std::shared_ptr<Flight> flight = entry.flight;
  if (flight->waiters == 0) Abandoned(flight, effects);
}

// The last waiter of a flight went.
void FetchCore::Abandoned(const std::shared_ptr<Flight>& flight,
                          Effects& effects) {
  if (flight->prefetch) {
    if (flight->state == Flight::State::kQueued && flight->in_demand) {
      demand_.erase(flight->ticket);
      EnqueueFlight(flight, back_ticket_++);
    }
    return;
  }
  const bool nearly_done = flight->state == Flight::State::kRunning &&
                           flight->end - flight->published <= kFinishBytes;
  if (!nearly_done) Drop(flight, effects);
}

void FetchCore::Erase(FetchFile& file, uint64_t granule, Effects& effects) {
  auto it = file.granules.find(granule);
  Granule& entry = it->second;
  Count(file, granule, entry, false);
  effects.dropped.push_back(std::move(entry.flight));
  effects.dropped.push_back(std::move(entry.elsewhere));
  file.granules.erase(it);
}

void FetchCore::CancelRead(const FetchFile& file, ReadId id) {
  const Activity activity(*this);
  if (!activity.entered()) return;
  Effects effects;
  {
    MutexLock lock(mutex_);
    auto it = reads_.find(id);
    if (it == reads_.end() || it->second->file().get() != &file) return;
    RememberWait(*it->second);
    effects.failures.push_back(
        {it->second, MakeError(Code::kCancelled, "{}: the read was cancelled",
                               Range(*it->second))});
  }
  Apply(std::move(effects));
}

std::string FetchCore::WaitsFor(ReadId id) const {
  MutexLock lock(mutex_);
  const auto it = reads_.find(id);
  if (it == reads_.end()) return "an answer to be sent";
  const bool fetched = it->second->waits > 0 || !it->second->flights.empty();
  return fetched ? origin_.name() : "the cache";
}

void FetchCore::OnDeadline(ReadId id) {
  const Activity activity(*this);
  if (!activity.entered()) return;
  Effects effects;
  {
    MutexLock lock(mutex_);
    auto it = reads_.find(id);
    if (it == reads_.end()) return;
    const Error error = DeadlineError(*it->second);
    RememberFailure(*it->second, error);
    effects.failures.push_back({it->second, error});
  }
  Apply(std::move(effects));
}

Error FetchCore::DeadlineError(const ReadOp& op) const {
  int attempts = 0;
  const Error* last = nullptr;
  std::string running;  // how far the attempt is that runs
  std::unordered_set<const Flight*> seen;
  auto add = [&](const Flight* flight) {
    if (flight == nullptr || !seen.insert(flight).second) return;
    attempts += flight->attempts;
    if (flight->last_error) last = &*flight->last_error;
    if (flight->state != Flight::State::kRunning) return;
    const int status = flight->status;
    running = status == 0 ? "no HTTP answer yet"
                          : fmt::format("HTTP {}, stuck after {} bytes", status,
                                        flight->received.load());
  };
  for (const auto& flight : op.flights) {
    if (flight->state != Flight::State::kEnded) add(flight.get());
  }
  if (op.waits > 0) {
    for (auto it = op.file()->granules.lower_bound(op.first_granule());
         it != op.file()->granules.end() && it->first <= op.last_granule();
         ++it) {
      add(it->second.flight.get());
    }
  }
  const bool from_cache = op.waits == 0 && op.flights.empty();
  std::string why;
  if (last != nullptr) {
    why = "last error: " + last->message();
  } else if (last_error_ && !from_cache) {
    why = "the origin's last error: " + last_error_->message();
  }
  if (!running.empty()) why += (why.empty() ? "" : "; then ") + running;
  const std::chrono::duration<double> seconds =
      Clock::System().Now() - op.started() + op.waited_before;
  return MakeError(Code::kUnavailable,
                   "{}: not there at the deadline after {:.1f} s, tier {}, {} "
                   "attempts, {}",
                   Range(op), seconds.count(),
                   from_cache ? "cache" : origin_.name(), attempts,
                   why.empty() ? "waited for its turn" : why);
}

uint64_t FetchCore::Prefetch(const std::shared_ptr<FetchFile>& file,
                             uint64_t offset, uint64_t length) {
  const uint64_t end = std::min(offset + length, file->info.size);
  if (file->cache == nullptr || offset >= end) return length;
  const Activity activity(*this);
  if (!activity.entered()) return length;
  const uint64_t first = offset / kGranuleSize;
  const uint64_t last = (end - 1) / kGranuleSize;
  Effects effects;
  uint64_t planned = first;
  for (int look = 0;; ++look) {
    const uint64_t landed = file->landed;
    const auto has =
        Look(file, first, last, options_.max_prefetch_bytes / kGranuleSize + 1);
    // What is fetched for later cannot be kept now.
    if (!has) return 0;
    MutexLock lock(mutex_);
    if (look < kMaxLooks && landed != file->landed) continue;
    if (phase_ != Phase::kRunning) return length;
    planned = PlanPrefetch(file, first, *has);
    Pump(effects);
    break;
  }
  Apply(std::move(effects));
  if (planned > last) return length;
  return std::max(planned * kGranuleSize, offset) - offset;
}

// Returns the first granule that there is no room for.
uint64_t FetchCore::PlanPrefetch(const std::shared_ptr<FetchFile>& file,
                                 uint64_t first, const std::vector<bool>& has) {
  for (size_t i = 0; i < has.size(); ++i) {
    const uint64_t g = first + i;
    if (has[i]) continue;
    const uint64_t bytes = file->GranuleEnd(g) - g * kGranuleSize;
    if (prefetch_bytes_ + bytes > options_.max_prefetch_bytes) return g;
    auto [it, added] = file->granules.try_emplace(g);
    if (!added) continue;
    it->second.prefetch = true;
    Count(*file, g, it->second, true);
    Enqueue(file, g, it->second, prefetch_, back_ticket_++);
  }
  return first + has.size();
}

}  // namespace weightfs
