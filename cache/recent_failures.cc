#include "cache/recent_failures.h"

#include <algorithm>

namespace weightfs {
namespace {

// Deadlines are set before the reads start: these are told apart no closer.
constexpr std::chrono::milliseconds kSlack{100};

RecentFailures::Duration Stretched(RecentFailures::Duration patience) {
  if (patience > RecentFailures::Duration::max() / 2) return patience;
  return patience + patience / 8 + kSlack;
}

}  // namespace

void RecentFailures::Add(uint64_t begin, uint64_t end, Clock::Time now,
                         Duration patience, const Error& error) {
  if (memory_ <= std::chrono::milliseconds(0) || begin >= end) return;
  if (failures_.size() >= kMost) failures_.pop_front();
  failures_.push_back(
      {begin, end, now + memory_, patience, Error(error).ToldBefore()});
}

const Error* RecentFailures::Find(uint64_t begin, uint64_t end, Clock::Time now,
                                  Duration patience) {
  while (!failures_.empty() && failures_.front().until <= now) {
    failures_.pop_front();
  }
  for (const Failure& failure : failures_) {
    if (failure.begin < end && begin < failure.end &&
        patience <= Stretched(failure.patience)) {
      return &failure.error;
    }
  }
  return nullptr;
}

void RecentFailures::Forget(uint64_t begin, uint64_t end) {
  const auto overlaps = [&](const auto& range) {
    return range.begin < end && begin < range.end;
  };
  std::erase_if(failures_, overlaps);
  std::erase_if(waits_, overlaps);
}

void RecentFailures::AddWait(uint64_t begin, uint64_t end, Clock::Time now,
                             Duration waited) {
  if (begin >= end) return;
  if (waits_.size() >= kMost) waits_.pop_front();
  waits_.push_back({begin, end, now + memory_, waited});
}

RecentFailures::Duration RecentFailures::Waited(uint64_t begin, uint64_t end,
                                                Clock::Time now) {
  while (!waits_.empty() && waits_.front().until <= now) waits_.pop_front();
  Duration most{};
  for (const Wait& wait : waits_) {
    if (wait.begin < end && begin < wait.end)
      most = std::max(most, wait.waited);
  }
  return most;
}

}  // namespace weightfs
