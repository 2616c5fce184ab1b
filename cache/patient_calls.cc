#include "cache/patient_calls.h"

#include <utility>

namespace weightfs {
namespace {

// kWaiting → kRunning → kEnded; both of the first → kGivenUp, by the caller.
enum class Phase { kWaiting, kRunning, kEnded, kGivenUp };

}  // namespace

bool PatientCalls::Run(std::function<void()> call) {
  const Clock::Time deadline = Clock::System().Now() + patience_;
  // Guarded by the state's mutex.
  auto phase = std::make_shared<Phase>(Phase::kWaiting);
  if (overdue()) return false;
  const bool queued =
      pool_.Submit([state = state_, phase, task = std::move(call)]() mutable {
        {
          MutexLock lock(state->mutex);
          if (*phase == Phase::kGivenUp) return;
          *phase = Phase::kRunning;
        }
        task();
        task = nullptr;  // what it owns may take long to go, too
        MutexLock lock(state->mutex);
        if (*phase == Phase::kGivenUp) --state->overdue;
        *phase = Phase::kEnded;
        state->ended.NotifyAll();
      });
  if (!queued) return false;
  MutexLock lock(state_->mutex);
  while (*phase != Phase::kEnded) {
    if (state_->ended.WaitUntil(state_->mutex, deadline) ||
        Clock::System().Now() < deadline) {
      continue;
    }
    if (*phase == Phase::kEnded) break;
    if (*phase == Phase::kRunning) ++state_->overdue;
    *phase = Phase::kGivenUp;
    return false;
  }
  return true;
}

bool PatientCalls::overdue() const {
  MutexLock lock(state_->mutex);
  return state_->overdue > 0;
}

}  // namespace weightfs
