#include "cache/concurrency.h"

#include <algorithm>

namespace weightfs {
namespace {

constexpr std::chrono::seconds kOneMoment{1};

}  // namespace

Concurrency::Concurrency(size_t usual, size_t most)
    : usual_(usual), most_(std::max(usual, most)), limit_(usual) {}

void Concurrency::Begin(Clock::Time now, uint64_t fetched) {
  since_ = now;
  fetched_ = fetched;
}

void Concurrency::OnLook(Clock::Time now, uint64_t fetched, bool full) {
  if (!full) {
    since_ = Clock::Time();
    return;
  }
  if (since_ == Clock::Time()) return Begin(now, fetched);
  if (now - since_ < kPeriod) return;
  const double goodput = static_cast<double>(fetched - fetched_) /
                         std::chrono::duration<double>(now - since_).count();
  Begin(now, fetched);
  if (before_ != 0 && goodput < kGain * goodput_) {
    limit_ = before_;
    before_ = 0;
    rest_until_ = now + kRest;
    return;
  }
  before_ = 0;
  if (now < rest_until_ || limit_ >= most_) return;
  before_ = limit_;
  goodput_ = goodput;
  // What was halved comes back in small steps.
  const size_t step = limit_ < usual_ ? 1 : limit_ / 2;
  limit_ = std::min(limit_ + std::max<size_t>(step, 1), most_);
}

void Concurrency::OnRefused(Clock::Time now) {
  rest_until_ = now + kRest;
  before_ = 0;
  if (now - refused_ < kOneMoment) return;
  refused_ = now;
  limit_ = std::max<size_t>(limit_ / 2, 1);
  since_ = Clock::Time();
}

}  // namespace weightfs
