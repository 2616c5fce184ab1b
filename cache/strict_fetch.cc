// StrictObject: gets the file into the cache, and watches the time.

#include <algorithm>
#include <utility>

#include "cache/strict_file.h"

namespace weightfs {
namespace {

// Between looks at a file that is waited for.
constexpr std::chrono::milliseconds kPace{50};
constexpr uint64_t kPrefetchBytes = uint64_t{64} << 20;
// A granule that was fetched and is not cached so long after is not kept.
constexpr std::chrono::milliseconds kKeepPatience{1'000};
constexpr int kKeepTries = 3;

}  // namespace

void StrictObject::ArmTick() {
  shared_->parts.timers->At(Clock::System().Now() + kPace,
                            [weak = weak_from_this()] {
                              if (const auto self = weak.lock()) self->Tick();
                            });
}

Error StrictObject::Overdue(const Wait& wait) const {
  const double seconds = std::chrono::duration<double>(wait.patience).count();
  std::string why =
      last_error_ ? fmt::format(", last error: {}", last_error_->message())
                  : std::string();
  if (present_ == info().size) why = ", and its hash was not checked";
  return MakeError(
      Code::kUnavailable,
      "{} bytes {}-{}: held back until the whole file is verified, and nothing "
      "more of it came in {:.1f} s; {} of its {} bytes are there{}",
      info().path, wait.offset, wait.offset + wait.out.size() - 1, seconds,
      present_, info().size, why);
}

void StrictObject::Tick() {
  const Clock::Time now = Clock::System().Now();
  std::vector<std::pair<WaitPtr, Error>> overdue;
  bool look = false;
  bool again = false;
  ReadId unwanted = 0;
  {
    MutexLock lock(mutex_);
    for (auto it = waits_.begin(); it != waits_.end();) {
      const Wait& wait = *it->second;
      if (wait.phase != Phase::kForwarded && Base() + wait.patience <= now) {
        overdue.emplace_back(it->second, Overdue(wait));
        failure_ = overdue.back().second;
        failed_at_ = now;
        it = waits_.erase(it);
        continue;
      }
      look = look || wait.phase == Phase::kWaiting;
      ++it;
    }
    look = look && !looking_;
    if (look) looking_ = true;
    again = !waits_.empty();
    if (!again) {
      ticking_ = false;
      session_end_ = now;
      if (fetching_) unwanted = fetch_id_;
    }
  }
  for (auto& [wait, error] : overdue) Complete(wait, std::move(error));
  if (unwanted != 0) inner_->CancelRead(unwanted);
  if (again) ArmTick();
  if (look) {
    shared_->disk.Submit([self = shared_from_this()] { self->Look(); });
  }
}

void StrictObject::Look() {
  LookOnce();
  MutexLock lock(mutex_);
  looking_ = false;
}

void StrictObject::LookOnce() {
  if (cached_->verified()) return ServeAll();
  if (!cached_->IsWhole()) return Forward();
  uint64_t present = 0;
  std::optional<uint64_t> absent;
  for (uint64_t g = 0; g * kGranuleSize < info().size; ++g) {
    if (cached_->Has(g)) {
      present += std::min(kGranuleSize, info().size - g * kGranuleSize);
    } else if (!absent) {
      absent = g;
    }
  }
  const uint64_t hashed = shared_->parts.verifier->HashedBytes(*cached_);
  {
    MutexLock lock(mutex_);
    present_ = present;
    if (present + hashed > most_) {
      most_ = present + hashed;
      last_progress_ = Clock::System().Now();
      not_kept_ = 0;
    }
  }
  if (absent) return Fetch(*absent);
  shared_->parts.verifier->Watch(info(), cached_);
  shared_->parts.verifier->Nudge();
}

void StrictObject::ServeAll() {
  std::vector<ReadId> ids;
  {
    MutexLock lock(mutex_);
    for (const auto& [id, wait] : waits_) {
      if (wait->phase == Phase::kWaiting) ids.push_back(id);
    }
  }
  for (const ReadId id : ids) {
    shared_->disk.Submit([self = shared_from_this(), id] { self->Serve(id); });
  }
}

// What was cached was wrong, or broke: the file opened anew may be right.
void StrictObject::Forward() {
  const std::shared_ptr<Object> object = reopen_();
  if (object == nullptr || object.get() == this) return;  // not yet
  std::vector<std::pair<ReadId, WaitPtr>> moved;
  {
    MutexLock lock(mutex_);
    for (const auto& [id, wait] : waits_) {
      if (wait->phase != Phase::kWaiting) continue;
      wait->phase = Phase::kForwarded;
      wait->forward = object;
      moved.emplace_back(id, wait);
    }
  }
  const Clock::Time now = Clock::System().Now();
  for (const auto& [id, wait] : moved) {
    const ReadId forward_id = object->StartRead(
        wait->offset, wait->out, ReadOptions{now + wait->patience},
        [self = shared_from_this(), own = id](Result<> result) {
          const WaitPtr ended = self->Take(own);
          if (ended == nullptr) return;
          const Done done = std::move(ended->done);
          ended->object.reset();
          done(std::move(result));
        });
    bool cancel = false;
    {
      MutexLock lock(mutex_);
      wait->forward_id = forward_id;
      cancel = wait->cancelled;
    }
    if (cancel) object->CancelRead(forward_id);
  }
}

void StrictObject::Fetch(uint64_t granule) {
  const Clock::Time now = Clock::System().Now();
  const uint64_t offset = granule * kGranuleSize;
  const uint64_t length = std::min(kGranuleSize, info().size - offset);
  bool fetch = false;
  bool prefetch = false;
  bool full = false;
  Duration patience{};
  {
    MutexLock lock(mutex_);
    if (stopped_ || waits_.empty()) return;
    if (!fetching_) {
      const bool again = fetched_ == granule;
      fetch = !again || now >= fetched_at_ + kKeepPatience;
      if (fetch && again) full = ++not_kept_ >= kKeepTries;
    }
    fetching_ = fetching_ || fetch;
    for (const auto& [id, wait] : waits_) {
      patience = std::max(patience, wait->patience);
    }
    // A little before those who wait, who tell then what it was told.
    patience = patience * 9 / 10;
    prefetch = offset >= prefetched_from_ + kPrefetchBytes / 4 ||
               offset < prefetched_from_ ||
               now >= prefetched_at_ + kKeepPatience;
    if (prefetch) {
      prefetched_from_ = offset;
      prefetched_at_ = now;
    }
  }
  if (full) {
    {
      MutexLock lock(mutex_);
      fetching_ = false;
      fetched_.reset();
    }
    return FailAll(
        MakeError(Code::kNoSpace,
                  "{}: --verify=strict needs all of its {} bytes in the cache, "
                  "which does "
                  "not keep them: the disk is full or --cache-size too small",
                  info().path, info().size));
  }
  if (fetch) {
    auto bytes = std::make_shared<std::vector<std::byte>>(length);
    {
      MutexLock lock(mutex_);
      fetched_ = granule;
      fetch_id_ = 0;
    }
    const ReadId id = inner_->StartRead(
        offset, *bytes, ReadOptions{now + patience},
        [self = shared_from_this(), bytes](const Result<>& result) {
          self->FetchDone(result);
        });
    bool stopped = false;
    {
      MutexLock lock(mutex_);
      if (fetching_) fetch_id_ = id;
      stopped = stopped_;
    }
    if (stopped) inner_->CancelRead(id);
  }
  if (prefetch) {
    inner_->Prefetch(offset, std::min(kPrefetchBytes, info().size - offset));
  }
}

void StrictObject::FetchDone(const Result<>& result) {
  {
    MutexLock lock(mutex_);
    fetching_ = false;
    fetch_id_ = 0;
    fetched_at_ = Clock::System().Now();
    if (result.has_value()) return;
    fetched_.reset();
    if (result.error().code() == Code::kCancelled) return;
    last_error_ = result.error();
    if (result.error().code() == Code::kUnavailable) return;  // tried again
  }
  FailAll(result.error());
}

}  // namespace weightfs
