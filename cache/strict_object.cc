#include "cache/strict_object.h"

#include <algorithm>
#include <utility>

#include "cache/strict_file.h"
#include "formats/base/checked.h"

namespace weightfs {
namespace {

Error HeldBack() { return {Code::kStale, "not verified"}; }

}  // namespace

template <class Read>
Result<> StrictObject::WhileVerified(uint64_t offset, uint64_t length,
                                     Read read) {
  if (!cached_->verified()) return HeldBack();
  ASSIGN_OR_RETURN(SlabPin pin, cached_->Pin(offset, length));
  const uint64_t first = offset / kSlabSize;
  const uint64_t last = (offset + length - 1) / kSlabSize;
  std::vector<uint32_t> generations;
  for (uint64_t slab = first; slab <= last; ++slab) {
    generations.push_back(cached_->Generation(slab));
  }
  if (!cached_->verified()) return HeldBack();
  RETURN_IF_ERROR(read(pin));
  if (!cached_->verified()) return HeldBack();
  for (uint64_t slab = first; slab <= last; ++slab) {
    if (cached_->Generation(slab) != generations[slab - first]) {
      return HeldBack();
    }
  }
  return {};
}

bool StrictObject::TryRead(uint64_t offset, std::span<std::byte> out) {
  if (out.empty()) return true;
  const InlineStays::Stay stay(shared_->inline_reads);
  return stay.inside() &&
         WhileVerified(offset, out.size(), [&](const SlabPin&) -> Result<> {
           if (!cached_->TryRead(offset, out)) return HeldBack();
           return {};
         }).has_value();
}

std::optional<LentBytes> StrictObject::TryLend(uint64_t offset,
                                               uint64_t length) {
  if (length == 0) return std::nullopt;
  const InlineStays::Stay stay(shared_->inline_reads);
  if (!stay.inside()) return std::nullopt;
  LentBytes lent;
  const auto read = WhileVerified(offset, length, [&](SlabPin& pin) {
    lent.parts.push_back(cached_->TryLend(offset, length));
    lent.owners.push_back(std::make_shared<SlabPin>(std::move(pin)));
    return Result<>();
  });
  if (!read.has_value() || lent.size() == 0) return std::nullopt;
  return lent;
}

ReadId StrictObject::StartRead(uint64_t offset, std::span<std::byte> out,
                               const ReadOptions& options, Done done) {
  const ReadId id = shared_->next_read++;
  const Clock::Time now = Clock::System().Now();
  auto wait = std::make_shared<Wait>();
  wait->object = shared_from_this();
  wait->offset = offset;
  wait->out = out;
  wait->patience = options.deadline == Clock::Time::max()
                       ? shared_->parts.patience
                       : options.deadline - now;
  wait->done = std::move(done);
  std::optional<Result<>> ended;
  if (!RangeFits(offset, out.size(), info().size)) {
    ended = MakeError(Code::kInvalid, "{}: a read past its {} bytes",
                      info().path, info().size);
  } else if (out.empty()) {
    ended = Result<>();
  } else if (info().size > shared_->parts.largest) {
    ended = MakeError(
        Code::kNoSpace,
        "{}: --verify=strict needs all of its {} bytes in the cache, and "
        "--cache-size lets it keep files of {} bytes at most",
        info().path, info().size, shared_->parts.largest);
  }
  bool tick = false;
  if (!ended) {
    MutexLock lock(mutex_);
    if (stopped_) {
      ended = Error(Code::kCancelled, "shutting down");
    } else if (failure_ && now < failed_at_ + kFailureMemory) {
      ended = *failure_;
    } else {
      if (waits_.empty() && now > session_end_ + kFailureMemory) {
        session_start_ = now;
        most_ = 0;
        not_kept_ = 0;
        last_error_.reset();
      }
      failure_.reset();
      waits_.emplace(id, wait);
      tick = !std::exchange(ticking_, true);
    }
  }
  if (ended) {
    Complete(wait, *std::move(ended));
    return id;
  }
  if (tick) ArmTick();
  shared_->disk.Submit([self = shared_from_this(), id] { self->Serve(id); });
  return id;
}

void StrictObject::CancelRead(ReadId id) {
  std::shared_ptr<Object> forward;
  ReadId forward_id = 0;
  WaitPtr taken;
  {
    MutexLock lock(mutex_);
    const auto it = waits_.find(id);
    if (it == waits_.end()) return;
    Wait& wait = *it->second;
    if (wait.phase == Phase::kForwarded) {
      // Its memory is in use until that one ended.
      wait.cancelled = true;
      forward = wait.forward;
      forward_id = wait.forward_id;
    } else {
      taken = std::move(it->second);
      waits_.erase(it);
    }
  }
  if (forward != nullptr && forward_id != 0) forward->CancelRead(forward_id);
  if (taken) Complete(taken, Error(Code::kCancelled, "cancelled"));
}

StrictObject::WaitPtr StrictObject::Take(ReadId id) {
  MutexLock lock(mutex_);
  const auto it = waits_.find(id);
  if (it == waits_.end()) return nullptr;
  WaitPtr wait = std::move(it->second);
  waits_.erase(it);
  return wait;
}

void StrictObject::Complete(const WaitPtr& wait, Result<> result) {
  auto task = [wait, ended = std::move(result)]() mutable {
    const Done done = std::move(wait->done);
    wait->object.reset();
    done(std::move(ended));
  };
  if (!shared_->parts.pool->Submit(task)) task();
}

void StrictObject::FailAll(const Error& error) {
  std::vector<WaitPtr> failed;
  {
    MutexLock lock(mutex_);
    failure_ = error;
    failed_at_ = Clock::System().Now();
    for (auto it = waits_.begin(); it != waits_.end();) {
      if (it->second->phase == Phase::kForwarded) {
        ++it;
        continue;
      }
      failed.push_back(std::move(it->second));
      it = waits_.erase(it);
    }
  }
  for (const WaitPtr& wait : failed) Complete(wait, error);
}

void StrictObject::Stop() {
  ReadId fetch = 0;
  {
    MutexLock lock(mutex_);
    stopped_ = true;
    fetch = fetch_id_;
  }
  if (fetch != 0) inner_->CancelRead(fetch);
  FailAll(Error(Code::kCancelled, "shutting down"));
}

Clock::Time StrictObject::Until(ReadId id, Clock::Time deadline) const {
  std::shared_ptr<Object> forward;
  ReadId forward_id = 0;
  {
    MutexLock lock(mutex_);
    const auto it = waits_.find(id);
    if (it == waits_.end()) return deadline;
    const Wait& wait = *it->second;
    if (wait.phase != Phase::kForwarded || wait.forward_id == 0) {
      return std::max(deadline, Base() + wait.patience);
    }
    forward = wait.forward;
    forward_id = wait.forward_id;
  }
  return forward->Until(forward_id, deadline);
}

std::string StrictObject::WaitsFor(ReadId) const {
  ReadId fetch = 0;
  uint64_t present = 0;
  {
    MutexLock lock(mutex_);
    if (fetching_) fetch = fetch_id_;
    present = present_;
  }
  std::string what = fmt::format("the hash of the whole file ({} of {} bytes)",
                                 present, info().size);
  if (fetch != 0) what += ", " + inner_->WaitsFor(fetch);
  return what;
}

void StrictObject::Serve(ReadId id) {
  uint64_t offset = 0;
  uint64_t length = 0;
  {
    MutexLock lock(mutex_);
    const auto it = waits_.find(id);
    if (it == waits_.end() || it->second->phase != Phase::kWaiting) return;
    it->second->phase = Phase::kServing;
    offset = it->second->offset;
    length = it->second->out.size();
  }
  // The read's own memory is its caller's as soon as it ended otherwise.
  std::vector<std::byte> bytes(length);
  Result<> read = WhileVerified(offset, length, [&](const SlabPin&) {
    return cached_->Read(offset, bytes);
  });
  if (!read.has_value() && read.error().code() == Code::kStale) {
    bool look = false;
    {
      MutexLock lock(mutex_);
      const auto it = waits_.find(id);
      if (it == waits_.end()) return;
      it->second->phase = Phase::kWaiting;
      look = !std::exchange(looking_, true);
    }
    if (look) Look();
    return;
  }
  const WaitPtr wait = Take(id);
  if (wait == nullptr) return;
  if (read.has_value())
    std::copy(bytes.begin(), bytes.end(), wait->out.begin());
  Complete(wait, std::move(read));
}

StrictReads::StrictReads(const Parts& parts)
    : shared_(std::make_shared<Shared>(parts)) {}

StrictReads::~StrictReads() { Stop(); }

std::shared_ptr<Object> StrictReads::Wrap(std::shared_ptr<Object> object,
                                          std::shared_ptr<CacheFile> cached,
                                          Reopen reopen) {
  auto strict = std::make_shared<StrictObject>(
      shared_, std::move(object), std::move(cached), std::move(reopen));
  bool stopped = false;
  {
    MutexLock lock(shared_->mutex);
    stopped = shared_->stopped;
    auto& objects = shared_->objects;
    if (objects.size() >= shared_->prune_at) {
      std::erase_if(objects, [](const auto& weak) { return weak.expired(); });
      shared_->prune_at = std::max<size_t>(64, 2 * objects.size());
    }
    objects.push_back(strict);
  }
  if (stopped) strict->Stop();
  return strict;
}

void StrictReads::Stop() {
  std::vector<std::weak_ptr<StrictObject>> objects;
  {
    MutexLock lock(shared_->mutex);
    shared_->stopped = true;
    objects.swap(shared_->objects);
  }
  for (const auto& weak : objects) {
    if (const auto object = weak.lock()) object->Stop();
  }
  shared_->disk.Stop();
}

}  // namespace weightfs
