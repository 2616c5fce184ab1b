#include "cache/verifier.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <utility>

#include "formats/base/byte_buffer.h"
#include "formats/base/clock.h"
#include "formats/base/log.h"
#include "formats/base/worker_pool.h"

namespace weightfs {
namespace {

constexpr uint64_t kPiece = uint64_t{1} << 20;  // bytes read and hashed at once
// Between looks at files whose next byte is not there: while bytes come, and
// when none came for long.
constexpr std::chrono::milliseconds kBusyPause{50};
constexpr std::chrono::milliseconds kIdlePause{1'000};
constexpr std::chrono::seconds kIdleAfter{10};
constexpr int kNiceness = 10;

}  // namespace

struct Verifier::Watched {
  Watched(FileInfo info, std::weak_ptr<CacheFile> in_cache)
      : file(std::move(info)),
        cached(std::move(in_cache)),
        hash(file.id.kind, file.size) {}

  void Restart() {
    hash = ContentHash(file.id.kind, file.size);
    hashed = 0;
    generations.clear();
  }
  bool done(const CacheFile& file_in_cache) const {
    return file_in_cache.verified() && !seal;
  }

  const FileInfo file;
  const std::weak_ptr<CacheFile> cached;
  ContentHash hash;
  std::atomic<uint64_t> hashed{0};  // as the hash counts, for other threads
  // Of the slabs hashed so far, from before that.
  std::vector<uint32_t> generations;
  uint64_t losses = 0;  // from before the first byte was hashed
  std::atomic<bool> seal{false};
};

Verifier::Verifier() : thread_(StartThread("wfs-verify", [this] { Run(); })) {}

Verifier::~Verifier() { Stop(); }

std::shared_ptr<Verifier::Watched> Verifier::Find(
    const std::weak_ptr<const CacheFile>& cached) const {
  const auto it =
      std::find_if(watched_.begin(), watched_.end(), [&](const auto& watched) {
        return !watched->cached.owner_before(cached) &&
               !cached.owner_before(watched->cached);
      });
  return it != watched_.end() ? *it : nullptr;
}

void Verifier::Watch(const FileInfo& file,
                     const std::shared_ptr<CacheFile>& cached) {
  if (file.id.kind == ContentId::Kind::kStat || cached->verified()) return;
  MutexLock lock(mutex_);
  if (stopping_ || Find(cached) != nullptr) return;
  watched_.push_back(std::make_shared<Watched>(file, cached));
  nudged_ = true;
  wake_.NotifyAll();
}

void Verifier::WatchToSeal(const FileInfo& file,
                           const std::shared_ptr<CacheFile>& cached) {
  if (file.id.kind == ContentId::Kind::kStat) return;
  MutexLock lock(mutex_);
  if (stopping_) return;
  auto watched = Find(cached);
  if (watched == nullptr) {
    watched = std::make_shared<Watched>(file, cached);
    watched_.push_back(watched);
    nudged_ = true;
    wake_.NotifyAll();
  }
  watched->seal = true;
}

void Verifier::Nudge() {
  MutexLock lock(mutex_);
  nudged_ = true;
  wake_.NotifyAll();
}

uint64_t Verifier::HashedBytes(const CacheFile& cached) const {
  MutexLock lock(mutex_);
  const auto watched = Find(cached.weak_from_this());
  return watched != nullptr ? watched->hashed.load() : 0;
}

Verifier::Stats Verifier::stats() const {
  MutexLock lock(mutex_);
  return stats_;
}

void Verifier::Stop() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    wake_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

void Verifier::Run() {
  // Linux has a niceness per thread; readers go first.
  ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kNiceness);
  Clock::Time last_moved = Clock::System().Now();
  for (;;) {
    std::vector<std::shared_ptr<Watched>> round;
    {
      MutexLock lock(mutex_);
      if (stopping_) return;
      nudged_ = false;
      round = watched_;
    }
    bool moved = false;
    rest_ = {};
    for (const auto& watched : round) {
      const Step step = Advance(*watched);
      moved = moved || step != Step::kIdle;
      MutexLock lock(mutex_);
      // Unless somebody asked for a seal when it was nearly through.
      if (step == Step::kDone && !watched->seal) std::erase(watched_, watched);
      if (stopping_) return;
    }
    const Clock::Time now = Clock::System().Now();
    if (moved) {
      last_moved = now;
      MutexLock lock(mutex_);
      while (!stopping_ && Clock::System().Now() < now + rest_) {
        wake_.WaitUntil(mutex_, now + rest_);
      }
      continue;
    }
    const auto pause = now - last_moved < kIdleAfter ? kBusyPause : kIdlePause;
    MutexLock lock(mutex_);
    while (!stopping_ && !nudged_) {
      if (watched_.empty()) {
        wake_.Wait(mutex_);
      } else if (!wake_.WaitUntil(mutex_, now + pause) &&
                 Clock::System().Now() >= now + pause) {
        break;
      }
    }
  }
}

// It is done with, and no seal is owed.
Verifier::Step Verifier::End(Watched& watched) {
  watched.seal = false;
  return Step::kDone;
}

Verifier::Step Verifier::Advance(Watched& watched) {
  const auto cached = watched.cached.lock();
  if (cached == nullptr || !cached->IsWhole()) return End(watched);
  if (watched.done(*cached)) return Step::kDone;
  const uint64_t size = watched.file.size;
  const uint64_t begin = watched.hash.added();
  uint64_t end = begin;
  while (end < std::min(begin + kPiece, size) &&
         cached->Has(end / kGranuleSize)) {
    end = std::min((end / kGranuleSize + 1) * kGranuleSize, size);
  }
  if (end == begin && begin < size) return Step::kIdle;
  const ByteBuffer buffer(end - begin);
  const std::span<std::byte> bytes = buffer.span();
  if (begin == 0) watched.losses = cached->losses();
  {
    const auto pin = cached->Pin(begin, bytes.size());
    if (!pin.has_value()) return Step::kIdle;
    for (uint64_t slab = begin / kSlabSize; slab * kSlabSize < end; ++slab) {
      const uint32_t generation = cached->Generation(slab);
      if (slab >= watched.generations.size()) {
        watched.generations.push_back(generation);
      } else if (watched.generations[slab] != generation) {
        watched.Restart();  // what was hashed of it may be other bytes now
        return Step::kIdle;
      }
    }
    if (!cached->Read(begin, bytes).has_value()) return Step::kIdle;
  }
  const auto used = Courtesy::OwnTime();
  const Clock::Time began = Clock::System().Now();
  watched.hash.Add(bytes);
  rest_ = std::max(rest_, courtesy_.AfterPiece(Courtesy::OwnTime() - used,
                                               Clock::System().Now() - began));
  watched.hashed = watched.hash.added();
  {
    MutexLock lock(mutex_);
    stats_.hashed_bytes += bytes.size();
  }
  return end == size ? Conclude(watched, *cached) : Step::kMoved;
}

Verifier::Step Verifier::Conclude(Watched& watched, CacheFile& cached) {
  const FileInfo& file = watched.file;
  const std::string found = watched.hash.Finish();
  const std::vector<uint32_t> generations = std::move(watched.generations);
  watched.Restart();
  if (found == file.id.value) return Trust(watched, cached, generations);
  for (size_t slab = 0; slab < generations.size(); ++slab) {
    // Mixed from before and after a loss: proves nothing.
    if (cached.Generation(slab) != generations[slab]) return Step::kIdle;
  }
  LogError(
      "the bytes that the origin sent are not the file: what was cached of it "
      "is dropped file={} listed={} found={}",
      file.path, file.id.ToString(), found);
  cached.Poison();
  {
    MutexLock lock(mutex_);
    ++stats_.wrong;
  }
  if (on_wrong_) on_wrong_(file);
  return End(watched);
}

// What was hashed is the file.
Verifier::Step Verifier::Trust(Watched& watched, CacheFile& cached,
                               const std::vector<uint32_t>& generations) {
  // Lost bytes are fetched and hashed again; a disk that fails is not asked
  // again.
  const auto gave_up = [&](const char* what, const Error& error) {
    LogDebug("not {} file={} why={}", what, watched.file.path, error.message());
    return error.code() == Code::kStale ? Step::kIdle : End(watched);
  };
  const bool was_verified = cached.verified();
  const auto promoted = cached.Promote(generations);
  if (!promoted.has_value()) return gave_up("promoted", promoted.error());
  if (!was_verified) {
    MutexLock lock(mutex_);
    ++stats_.verified;
  }
  const auto sealed = cached.Seal(generations, watched.losses, [this] {
    MutexLock lock(mutex_);
    return !stopping_;
  });
  if (!sealed.has_value()) return gave_up("sealed", sealed.error());
  {
    MutexLock lock(mutex_);
    ++stats_.sealed;
  }
  return End(watched);
}

}  // namespace weightfs
