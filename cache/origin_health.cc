#include "cache/origin_health.h"

#include <algorithm>

namespace weightfs {
namespace {

uint64_t SeedOrSystem(uint64_t seed) {
  if (seed != 0) return seed;
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

}  // namespace

OriginHealth::OriginHealth(std::chrono::milliseconds first,
                           std::chrono::milliseconds most, uint64_t seed)
    : first_(first), most_(most), random_(SeedOrSystem(seed)) {}

OriginHealth::Wait OriginHealth::Backoff(int failures) {
  Wait cap = first_;
  for (int i = 1; i < failures && cap < most_; ++i) cap *= 2;
  cap = std::clamp(cap, Wait::zero(), std::max(most_, Wait::zero()));
  std::uniform_int_distribution<int64_t> part(0, cap.count());
  return Wait(part(random_));
}

void OriginHealth::OnBytes(Clock::Time started) {
  if (down_ && started >= paused_until_) down_ = false;
}

void OriginHealth::OnProgress(Clock::Time started) {
  if (down_ && started < paused_until_) return;
  down_ = false;
  streak_ = 0;
  rounds_ = 0;
}

OriginHealth::Wait OriginHealth::OnFailure(Clock::Time now, int failures,
                                           const Error& error, bool progress) {
  const Wait wait = Backoff(failures);
  if (error.retry_after().has_value()) {
    const Wait named = std::clamp<Wait>(*error.retry_after(), Wait::zero(),
                                        Wait(kMaxRetryAfter));
    down_ = true;
    // Jitter on top: others were told the same time. And "now" (0 s) is not
    // believed again and again.
    const Wait least = now >= paused_until_ ? Backoff(++rounds_) : Wait::zero();
    paused_until_ =
        std::max(paused_until_, now + std::max(named + Backoff(1), least));
    return std::max(wait, named);
  }
  if (progress) return wait;
  ++streak_;
  if (!down_ && streak_ < kDownAfter) return wait;
  down_ = true;
  // Failures that come in while it is paused belong to the same burst.
  if (now >= paused_until_) paused_until_ = now + Backoff(++rounds_);
  return wait;
}

}  // namespace weightfs
