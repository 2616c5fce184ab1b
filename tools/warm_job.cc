#include "tools/warm_job.h"

#include <algorithm>
#include <utility>

#include "formats/base/log.h"

namespace weightfs {
namespace {

using std::chrono::milliseconds;

// Between two looks at what became of pieces.
constexpr milliseconds kLook{10};
// How long nothing may be published after a piece came, before it counts as
// not kept: the disk may be slow. Sooner where the fetcher says so.
constexpr milliseconds kWritePatience{3'000};
constexpr milliseconds kNotKept{300};
// A round that loses more is ended: the cache is full.
constexpr uint64_t kMostLost = 64 << 20;
// Rounds that gained next to nothing (where a cache is full, what comes may
// evict what came), and the pause before the next: a read that failed is not
// tried again within a second (FetcherOptions::failure_memory).
constexpr int kIdleRounds = 3;
constexpr uint64_t kLeastGain = 4 << 20;
constexpr uint64_t kShareOfGain = 16;  // of what was absent
constexpr milliseconds kIdlePause{1'100};
// Files that are whole and wait for their hash: each is kept open.
constexpr size_t kMostHashing = 128;
// A verifier that hashes nothing for so long has given a file up.
constexpr milliseconds kHashPatience{10'000};

uint64_t BytesOf(const std::vector<FileRun>& runs) {
  uint64_t bytes = 0;
  for (const FileRun& run : runs) bytes += run.length;
  return bytes;
}

Error Stopped() { return Error(Code::kCancelled, "stopped"); }

}  // namespace

// A piece under way.
struct WarmJob::Slot {
  const std::unique_ptr<std::byte[]> buffer =
      std::make_unique_for_overwrite<std::byte[]>(kPiece);
  bool busy = false;
  FileRun piece;
  std::shared_ptr<Object> object;
  std::shared_ptr<CacheFile> cached;
  ReadId read = 0;
  std::vector<bool> there;  // of its granules: counted as done
  uint64_t missing = 0;     // bytes
  Clock::Time ended_at{};   // when that was seen

  // Guarded by the job's mutex.
  bool ended = false;
  std::optional<Error> error;
};

WarmJob::WarmJob(Engine& engine, const WarmPlan& plan, CacheSurvey& survey,
                 milliseconds patience)
    : engine_(engine),
      plan_(plan),
      survey_(survey),
      patience_(patience),
      snapshot_(engine.repo().snapshot()) {
  for (size_t i = 0; i < kPieces; ++i) {
    slots_.push_back(std::make_unique<Slot>());
  }
}

WarmJob::~WarmJob() = default;

Result<> WarmJob::Run() {
  uint64_t last = UINT64_MAX;  // absent before
  uint64_t wrong = engine_.verifier().stats().wrong;
  for (int idle = 0;;) {
    const std::vector<FileRun> absent = Survey();
    if (stopping()) return Stopped();
    const uint64_t bytes = BytesOf(absent);
    done_ = plan_.bytes - bytes;
    LogDebug("warming: absent={} of={} lost={}", bytes, plan_.bytes, lost_);
    if (!counted_.exchange(true)) before_ = done_.load();
    if (absent.empty()) {
      in_hashes_ = true;
      RETURN_IF_ERROR(AwaitHashes(0));
      in_hashes_ = false;
    }
    const uint64_t wrong_now = engine_.verifier().stats().wrong;
    if (std::exchange(wrong, wrong_now) != wrong_now) {
      last = UINT64_MAX;  // what was wrong is absent again
      if (absent.empty()) continue;
    }
    if (absent.empty()) return {};
    if (bytes < last - std::min(kLeastGain, last / kShareOfGain)) {
      idle = 0;
    } else if (++idle < kIdleRounds) {
      const auto until = Clock::System().Now() + kIdlePause;
      while (Clock::System().Now() < until && Pause(kLook)) {
      }
    } else if (unavailable_) {
      return *unavailable_;
    } else {
      return Error(Code::kNoSpace,
                   "the cache keeps no more of it: its limits (--cache-size, "
                   "--cache-keep-free) or the disk leave no room, or it cannot "
                   "be written; make room, or choose tensors with --tensors");
    }
    last = std::min(last, bytes);
    RETURN_IF_ERROR(Fetch(absent));
  }
}

void WarmJob::Stop() {
  MutexLock lock(mutex_);
  stopping_ = true;
  wake_.NotifyAll();
}

bool WarmJob::stopping() const {
  MutexLock lock(mutex_);
  return stopping_;
}

WarmJob::Progress WarmJob::progress() const {
  return {.total = plan_.bytes,
          .before = before_,
          .done = done_,
          .counted = counted_,
          .hashing = in_hashes_};
}

bool WarmJob::Pause(milliseconds most) {
  const auto until = Clock::System().Now() + most;
  MutexLock lock(mutex_);
  while (!stopping_ && seen_ == ended_ && Clock::System().Now() < until) {
    wake_.WaitUntil(mutex_, until);
  }
  seen_ = ended_;
  return !stopping_;
}

std::vector<FileRun> WarmJob::Survey() {
  std::unordered_map<uint32_t, std::vector<size_t>> of_file;
  std::vector<uint32_t> files;
  for (size_t i = 0; i < plan_.runs.size(); ++i) {
    auto& runs = of_file[plan_.runs[i].file];
    if (runs.empty()) files.push_back(plan_.runs[i].file);
    runs.push_back(i);
  }
  const std::string& name_space = engine_.repo().origin().cache_namespace();
  std::vector<std::vector<FileRun>> absent(plan_.runs.size());
  for (const uint32_t file : files) {
    if (stopping()) return {};
    CacheSurvey::Found found;
    {
      const DiskTime::Stay stay(disk_);
      found = survey_.Look(name_space, snapshot_.files[file]);
    }
    const auto is_there = [](bool there) { return there; };
    const bool whole =
        std::all_of(found.granules.begin(), found.granules.end(), is_there);
    if (whole && !found.verified) {
      if (auto opened = Open(file); opened.has_value()) Close(file);
      (void)AwaitHashes(kMostHashing);
    }
    if (whole) continue;
    for (const size_t i : of_file[file]) {
      const FileRun& run = plan_.runs[i];
      for (uint64_t at = run.offset; at < run.end();) {
        const uint64_t g = at / kGranuleSize;
        const uint64_t next = std::min((g + 1) * kGranuleSize, run.end());
        if (!found.granules[g]) {
          if (!absent[i].empty() && absent[i].back().end() == at) {
            absent[i].back().length += next - at;
          } else {
            absent[i].push_back({file, at, next - at});
          }
        }
        at = next;
      }
    }
  }
  std::vector<FileRun> all;
  for (const auto& runs : absent) {
    all.insert(all.end(), runs.begin(), runs.end());
  }
  return all;
}

Result<> WarmJob::Fetch(const std::vector<FileRun>& absent) {
  lost_ = 0;
  unavailable_.reset();
  not_kept_ = engine_.fetcher().stats().bytes_not_kept;
  moved_ = Clock::System().Now();
  std::unordered_map<uint32_t, size_t> pieces;
  for (const FileRun& run : absent) {
    pieces[run.file] += (run.length + kPiece - 1) / kPiece;
  }
  for (const FileRun& run : absent) {
    for (uint64_t at = run.offset; at < run.end(); at += kPiece) {
      Slot* slot = FreeSlot();
      if (slot == nullptr) return AwaitPieces();
      if (!AwaitHashes(kMostHashing).has_value()) return AwaitPieces();
      auto opened = Open(run.file);
      if (!opened.has_value()) {
        failed_ = std::move(opened).error();
        return AwaitPieces();
      }
      if ((*opened)->pieces == 0) (*opened)->pieces = pieces[run.file];
      Start(*slot, run.file, {run.file, at, std::min(kPiece, run.end() - at)});
    }
  }
  return AwaitPieces();
}

Result<WarmJob::OpenFile*> WarmJob::Open(uint32_t file) {
  if (const auto it = open_.find(file); it != open_.end()) return &it->second;
  const FileInfo& info = snapshot_.files[file];
  OpenFile opened;
  {
    const DiskTime::Stay stay(disk_);
    ASSIGN_OR_RETURN(
        opened.cached,
        engine_.cache()->OpenObject(engine_.repo().origin().cache_namespace(),
                                    info.id, info.size));
    opened.object = engine_.repo().OpenFile(file);
  }
  return &(open_[file] = std::move(opened));
}

void WarmJob::Close(uint32_t file) {
  const auto it = open_.find(file);
  if (it == open_.end()) return;
  auto cached = std::move(it->second.cached);
  open_.erase(it);
  const DiskTime::Stay stay(disk_);
  const bool known =
      std::any_of(hashing_.begin(), hashing_.end(),
                  [&](const Hashing& other) { return other.file == file; });
  if (!known && cached->CachedFraction() == 1 && !cached->verified()) {
    hashing_.push_back({file, std::move(cached)});
    engine_.verifier().Nudge();
  }
}

void WarmJob::Start(Slot& slot, uint32_t file, const FileRun& piece) {
  slot.busy = true;
  slot.piece = piece;
  slot.object = open_[file].object;
  slot.cached = open_[file].cached;
  slot.there.assign((piece.length + kGranuleSize - 1) / kGranuleSize, false);
  slot.missing = piece.length;
  slot.ended_at = {};
  {
    MutexLock lock(mutex_);
    slot.ended = false;
    slot.error.reset();
  }
  slot.read = slot.object->StartRead(
      piece.offset, std::span(slot.buffer.get(), piece.length),
      {Clock::System().Now() + patience_}, [this, &slot](Result<> result) {
        MutexLock lock(mutex_);
        if (!result.has_value()) slot.error = std::move(result).error();
        slot.ended = true;
        ++ended_;
        // With the lock: the job may go as soon as it is free.
        wake_.NotifyAll();
      });
}

WarmJob::Slot* WarmJob::FreeSlot() {
  for (;;) {
    Settle();
    if (failed_ || lost_ > kMostLost || stopping()) return nullptr;
    for (const auto& slot : slots_) {
      if (!slot->busy) return slot.get();
    }
    Pause(kLook);
  }
}

bool WarmJob::Settle() {
  const uint64_t fetched = engine_.fetcher().stats().bytes_fetched;
  if (std::exchange(fetched_, fetched) != fetched) {
    moved_ = Clock::System().Now();
  }
  bool any = false;
  for (const auto& slot : slots_) {
    if (slot->busy) SettleSlot(*slot);
    any = any || slot->busy;
  }
  return any;
}

void WarmJob::SettleSlot(Slot& slot) {
  const Clock::Time now = Clock::System().Now();
  bool ended = false;
  std::optional<Error> error;
  {
    MutexLock lock(mutex_);
    ended = slot.ended;
    if (ended) error = slot.error;
  }
  bool is_whole = true;
  {
    const DiskTime::Stay stay(disk_);
    for (size_t i = 0; i < slot.there.size(); ++i) {
      const uint64_t begin = slot.piece.offset + i * kGranuleSize;
      if (slot.there[i] || !slot.cached->Has(begin / kGranuleSize)) continue;
      slot.there[i] = true;
      const uint64_t bytes =
          std::min(begin + kGranuleSize, slot.piece.end()) - begin;
      slot.missing -= bytes;
      done_ += bytes;
      moved_ = now;
    }
    is_whole = slot.cached->IsWhole();
  }
  if (!ended) return;
  if (slot.ended_at == Clock::Time()) slot.ended_at = now;
  if (slot.missing > 0 && !error && is_whole) {
    const bool full = engine_.fetcher().stats().bytes_not_kept > not_kept_;
    const auto patience = full ? kNotKept : kWritePatience;
    if (now - std::max(slot.ended_at, moved_) < patience) return;
  }
  if (error) {
    // Many pieces share a slow wire, and each has its own deadline.
    if (error->code() == Code::kUnavailable && now - moved_ < patience_ / 2) {
      unavailable_ = std::move(error);
    } else if (!failed_) {
      failed_ = std::move(error);
    }
  }
  lost_ += slot.missing;
  slot.busy = false;
  slot.object = nullptr;
  slot.cached = nullptr;
  const auto it = open_.find(slot.piece.file);
  if (it != open_.end() && --it->second.pieces == 0) Close(slot.piece.file);
}

Result<> WarmJob::AwaitPieces() {
  while (!failed_ && !stopping() && Settle()) Pause(kLook);
  const bool stopped = stopping();
  if (failed_ || stopped) CancelAll();
  open_.clear();
  if (stopped) return Stopped();
  if (failed_) return *failed_;
  return {};
}

void WarmJob::CancelAll() {
  for (const auto& slot : slots_) {
    if (slot->busy) slot->object->CancelRead(slot->read);
  }
  for (const auto& slot : slots_) {
    if (!slot->busy) continue;
    MutexLock lock(mutex_);
    while (!slot->ended) wake_.Wait(mutex_);
    slot->busy = false;
  }
}

Result<> WarmJob::AwaitHashes(size_t most) {
  uint64_t hashed = 0;
  auto moved = Clock::System().Now();
  for (;;) {
    {
      const DiskTime::Stay stay(disk_);
      std::erase_if(hashing_, [](const Hashing& file) {
        return file.cached->verified() || !file.cached->IsWhole();
      });
    }
    if (hashing_.size() <= most) return {};
    const auto now = Clock::System().Now();
    const Verifier::Stats stats = engine_.verifier().stats();
    const uint64_t sum = stats.hashed_bytes + stats.verified + stats.wrong;
    if (std::exchange(hashed, sum) != sum) moved = now;
    if (now - moved > kHashPatience) {
      for (const Hashing& file : hashing_) {
        LogWarning("its hash could not be checked file={}",
                   snapshot_.files[file.file].path);
      }
      hashing_.clear();
      return {};
    }
    if (!Pause(kLook)) return Stopped();
  }
}

}  // namespace weightfs
