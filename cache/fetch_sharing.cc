// FetchCore: what other processes fetch, and what this one keeps them from
// fetching.

#include <algorithm>
#include <unordered_map>

#include "cache/fetch_core.h"
#include "cache/fetch_core_internal.h"

namespace weightfs {
namespace {

using std::chrono::milliseconds;

// Between two looks at what another process fetches; each by half longer than
// the one before.
constexpr milliseconds kFirstPeriod{5};
constexpr milliseconds kLastPeriod{50};

// Of what is left to a reader's deadline, as 1 / kShareOfDeadline.
constexpr int kShareOfDeadline = 3;

}  // namespace

bool FetchCore::Sharing::Ask(FetchCore& core,
                             const std::shared_ptr<Attempt>& attempt,
                             Effects& effects) {
  Flight& flight = *attempt->flight();
  if (flight.direct || flight.anyway || flight.claimed) return false;
  flight.asking = true;
  ++core.stats_.claiming;
  const uint64_t first = flight.position / kGranuleSize;
  const uint64_t last = (flight.end - 1) / kGranuleSize;
  core.claims_->Claim(flight.file, {first, last - first + 1},
                      [self = core.shared_from_this(),
                       attempt](const std::optional<Answer>& answer) {
                        OnClaimed(*self, attempt, answer);
                      });
  effects.claims = true;
  return true;
}

void FetchCore::Sharing::Asked(FetchCore& core, Flight& flight) {
  if (flight.asking) --core.stats_.claiming;
  flight.asking = false;
}

void FetchCore::Sharing::Release(FetchCore& core, Flight& flight,
                                 Effects& effects) {
  if (!flight.claimed) return;
  flight.claimed = false;
  const uint64_t first = flight.published / kGranuleSize;
  const uint64_t last = (flight.end - 1) / kGranuleSize;
  if (flight.published >= flight.end) return;
  core.claims_->Release(flight.file, {first, last - first + 1});
  effects.claims = true;
}

void FetchCore::Sharing::OnClaimed(FetchCore& core,
                                   const std::shared_ptr<Attempt>& attempt,
                                   const std::optional<Answer>& answer) {
  const std::shared_ptr<Flight>& flight = attempt->flight();
  const Activity activity(core);
  Effects effects;
  {
    MutexLock lock(core.mutex_);
    bool begins = flight->state == Flight::State::kRunning;
    if (begins && answer) {
      begins = Settle(core, flight, *answer, effects);
    } else if (begins) {
      flight->anyway = true;
    } else if (answer) {
      // It was dropped meanwhile, and what it got is nobody's.
      const auto& fates = answer->fates;
      const auto mine = std::find(fates.begin(), fates.end(), ClaimFate::kMine);
      const auto count = std::count(mine, fates.end(), ClaimFate::kMine);
      const uint64_t first = flight->published / kGranuleSize;
      core.claims_->Release(
          flight->file, {first + static_cast<uint64_t>(mine - fates.begin()),
                         static_cast<uint64_t>(count)});
      effects.claims = true;
    }
    if (begins) {
      core.Begin(attempt, effects);
    } else {
      core.End(*attempt);
      core.quiet_.NotifyAll();
    }
    core.Pump(effects);
    if (activity.entered()) core.PumpDisk(effects);
  }
  if (activity.entered()) {
    core.Apply(std::move(effects));
  } else {
    core.claims_->Run();
  }
}

// The flight goes on as the run that is its own; everything else leaves it.
bool FetchCore::Sharing::Settle(FetchCore& core,
                                const std::shared_ptr<Flight>& flight,
                                const Answer& answer, Effects& effects) {
  const auto& file = flight->file;
  const uint64_t first = flight->position / kGranuleSize;
  const Clock::Time now = Clock::System().Now();
  const bool disk_is_stuck = core.DiskIsStuck(now);
  std::vector<uint64_t> there;
  std::vector<uint64_t> again;
  auto wait = std::make_shared<ClaimWait>();
  GranuleRun mine;
  for (size_t i = 0; i < answer.fates.size(); ++i) {
    const uint64_t g = first + i;
    if (answer.fates[i] == ClaimFate::kMine) {
      if (!mine) mine.first = g;
      ++mine.count;
      continue;
    }
    Granule& entry = file->granules.find(g)->second;
    flight->waiters -= entry.waiters.size();
    effects.dropped.push_back(std::move(entry.flight));
    entry.flight = nullptr;
    switch (answer.fates[i]) {
      case ClaimFate::kThere:
        if (!disk_is_stuck) {
          there.push_back(g);
          break;
        }
        [[fallthrough]];
      case ClaimFate::kStuck:
        entry.anyway = true;
        [[fallthrough]];
      case ClaimFate::kFree:
      case ClaimFate::kMine:
        again.push_back(g);
        break;
      case ClaimFate::kElsewhere:
        if (entry.waiters.empty()) {
          core.Erase(*file, g, effects);
          break;
        }
        entry.state = Granule::State::kElsewhere;
        entry.elsewhere = wait;
        wait->granules.push_back(g);
        break;
    }
  }
  Serve(core, file, there, effects);
  Requeue(core, file, again, effects);
  if (!wait->granules.empty()) {
    ++core.stats_.waits_for_others;
    wait->file = file;
    wait->claim = answer.elsewhere;
    wait->progressed = now;
    wait->end = now + core.options_.claim_limit;
    wait->period = kFirstPeriod;
    for (const uint64_t g : wait->granules) {
      for (const auto& op : file->granules.find(g)->second.waiters) {
        Hurry(*wait, *op, now);
      }
    }
    Wait(core, wait, now);
  }
  if (!mine) {
    flight->state = Flight::State::kEnded;
    return false;
  }
  flight->claimed = true;
  flight->position = mine.first * kGranuleSize;
  flight->published = flight->position;
  flight->end = file->GranuleEnd(mine.end() - 1);
  if (flight->waiters == 0) core.Abandoned(flight, effects);
  return flight->state == Flight::State::kRunning;
}

void FetchCore::Sharing::Hurry(ClaimWait& wait, const ReadOp& op,
                               Clock::Time now) {
  if (op.deadline() == Clock::Time::max()) return;
  const auto left = op.deadline() - op.waited_before - now;
  wait.end = std::min(wait.end, now + left / kShareOfDeadline);
}

void FetchCore::Sharing::Wait(FetchCore& core, const WaitPtr& wait,
                              Clock::Time now) {
  core.timers_.At(
      std::min(now + wait->period, std::max(wait->end, now)),
      [weak_core = core.weak_from_this(), weak = std::weak_ptr(wait)] {
        const auto self = weak_core.lock();
        const auto due = weak.lock();  // null: nobody waits any more
        if (self && due) OnTime(*self, due);
      });
}

void FetchCore::Sharing::OnTime(FetchCore& core, const WaitPtr& wait) {
  const Activity activity(core);
  if (!activity.entered()) return;
  Effects effects;
  {
    MutexLock lock(core.mutex_);
    std::erase_if(wait->granules, [&](uint64_t g) {
      const auto it = wait->file->granules.find(g);
      return it == wait->file->granules.end() || it->second.elsewhere != wait;
    });
    if (wait->granules.empty()) return;
    core.claims_->Look(
        wait->file, wait->granules,
        [self = core.shared_from_this(), wait,
         granules = wait->granules](const std::optional<Answer>& answer) {
          OnLooked(*self, wait, granules, answer);
        });
    effects.claims = true;
  }
  core.Apply(std::move(effects));
}

void FetchCore::Sharing::OnLooked(FetchCore& core, const WaitPtr& wait,
                                  const std::vector<uint64_t>& granules,
                                  const std::optional<Answer>& answer) {
  const Activity activity(core);
  if (!activity.entered()) return;
  const auto& file = wait->file;
  Effects effects;
  {
    MutexLock lock(core.mutex_);
    const Clock::Time now = Clock::System().Now();
    const bool disk_is_stuck = core.DiskIsStuck(now);
    std::vector<uint64_t> there;
    std::vector<uint64_t> again;
    std::vector<uint64_t> left;
    for (size_t i = 0; i < granules.size(); ++i) {
      const auto it = file->granules.find(granules[i]);
      if (it == file->granules.end() || it->second.elsewhere != wait) continue;
      auto fate = answer ? answer->fates[i] : ClaimFate::kStuck;
      if (fate == ClaimFate::kThere && disk_is_stuck) fate = ClaimFate::kStuck;
      it->second.anyway = fate == ClaimFate::kStuck;
      (fate == ClaimFate::kThere       ? there
       : fate == ClaimFate::kElsewhere ? left
                                       : again)
          .push_back(granules[i]);
    }
    core.stats_.granules_from_others += there.size();
    if (!there.empty() || (answer && answer->elsewhere != wait->claim)) {
      wait->progressed = now;
    }
    if (answer) wait->claim = answer->elsewhere;
    const bool stuck = now - wait->progressed >= core.options_.claim_patience;
    if (!left.empty() && (stuck || now >= wait->end)) {
      if (stuck) core.claims_->Distrust(file);
      effects.claims |= stuck;
      for (const uint64_t g : left)
        file->granules.find(g)->second.anyway = true;
      again.insert(again.end(), left.begin(), left.end());
      left.clear();
    }
    Serve(core, file, there, effects);
    Requeue(core, file, again, effects);
    if (!left.empty()) {
      wait->period =
          std::min<Clock::Time::duration>(wait->period * 3 / 2, kLastPeriod);
      Wait(core, wait, now);
    }
    core.Pump(effects);
    core.PumpDisk(effects);
  }
  core.Apply(std::move(effects));
}

void FetchCore::Sharing::Serve(FetchCore& core,
                               const std::shared_ptr<FetchFile>& file,
                               const std::vector<uint64_t>& granules,
                               Effects& effects) {
  if (granules.empty()) return;
  // Of each read, the run that its next granule may belong to.
  std::unordered_map<std::shared_ptr<ReadOp>, GranuleRun> runs;
  for (const uint64_t g : granules) {
    Granule& entry = file->granules.find(g)->second;
    for (const auto& op : entry.waiters) {
      --op->waits;
      GranuleRun& run = runs[op];
      if (run && (run.end() != g || run.count == kDiskReadGranules)) {
        core.QueueDiskRead(op, run.first, run.end() - 1);
        run = {};
      }
      if (!run) run.first = g;
      ++run.count;
    }
    entry.waiters.clear();
    core.Erase(*file, g, effects);
  }
  for (const auto& [op, run] : runs) {
    core.QueueDiskRead(op, run.first, run.end() - 1);
  }
  ++file->landed;
}

void FetchCore::Sharing::Requeue(FetchCore& core,
                                 const std::shared_ptr<FetchFile>& file,
                                 const std::vector<uint64_t>& granules,
                                 Effects& effects) {
  // Backwards, so that the first comes to be the very first.
  std::vector<uint64_t> order = granules;
  std::sort(order.rbegin(), order.rend());
  for (const uint64_t g : order) {
    Granule& entry = file->granules.find(g)->second;
    effects.dropped.push_back(std::move(entry.elsewhere));
    entry.elsewhere = nullptr;
    if (entry.waiters.empty() && !entry.prefetch) {
      core.Erase(*file, g, effects);
      continue;
    }
    core.Enqueue(file, g, entry,
                 entry.waiters.empty() ? core.prefetch_ : core.demand_,
                 --core.front_ticket_);
  }
}

void FetchCore::Sharing::WantAnyway(FetchCore& core,
                                    const std::shared_ptr<ReadOp>& op,
                                    uint64_t granule, Effects& effects) {
  core.Want(op, granule, effects);
  const auto it = op->file()->granules.find(granule);
  if (it->second.state == Granule::State::kQueued) it->second.anyway = true;
}

}  // namespace weightfs
