#include "cache/fetch_claims.h"

#include <algorithm>

namespace weightfs {
namespace {

// Claims of others that are remembered of one file. Each flight of a process
// makes one.
constexpr size_t kMaxStuck = 1024;

// Every run of [first, end) that others claim. They are told in no order.
void FindClaims(const CacheFile& file, uint64_t first, uint64_t end,
                std::vector<GranuleRun>& found) {
  std::vector<GranuleRun> left{{first, end - first}};
  while (!left.empty() && found.size() < kMaxStuck) {
    const GranuleRun at = left.back();
    left.pop_back();
    const GranuleRun claim = file.ClaimedElsewhere(at.first, at.count);
    if (!claim) continue;
    found.push_back(claim);
    if (claim.first > at.first) {
      left.push_back({at.first, claim.first - at.first});
    }
    if (claim.end() < at.end()) {
      left.push_back({claim.end(), at.end() - claim.end()});
    }
  }
}

}  // namespace

struct FetchClaims::Job {
  enum class Kind : uint8_t { kClaim, kLook, kRelease, kDistrust };

  void Work();
  // Gives back what Work() claimed.
  void TakeBack() const;

  Kind kind;
  std::shared_ptr<FetchFile> file;
  GranuleRun granules;           // kClaim, kRelease
  std::vector<uint64_t> wanted;  // kLook
  Done done;                     // kClaim, kLook
  Answer answer;

 private:
  void Claim();
  ClaimFate Elsewhere(const GranuleRun& claim);

  GranuleRun claimed_;
};

// The jobs of one call. If the caller gives the call up, what it still claims
// is nobody's.
struct FetchClaims::Batch {
  std::vector<std::shared_ptr<Job>> jobs;
  Mutex mutex;
  bool ended GUARDED_BY(mutex) = false;
  bool given_up GUARDED_BY(mutex) = false;
};

// Works off when it goes: when its task ran, or was destroyed unrun.
class FetchClaims::Turn {
 public:
  explicit Turn(std::shared_ptr<FetchClaims> claims)
      : claims_(std::move(claims)) {}
  ~Turn() { claims_->WorkOff(); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  const std::shared_ptr<FetchClaims> claims_;
};

void FetchClaims::Job::Work() {
  CacheFile& cache = *file->cache;
  switch (kind) {
    case Kind::kClaim:
      Claim();
      break;
    case Kind::kLook:
      for (const uint64_t g : wanted) {
        // In this order: a claim goes once its granule is published.
        const GranuleRun claim = cache.ClaimedElsewhere(g);
        answer.fates.push_back(cache.Has(g) ? ClaimFate::kThere
                               : claim      ? Elsewhere(claim)
                                            : ClaimFate::kFree);
      }
      break;
    case Kind::kRelease:
      cache.Unclaim(granules.first, granules.count);
      break;
    case Kind::kDistrust: {
      std::vector<GranuleRun> found;
      FindClaims(cache, 0, file->GranuleCount(), found);
      file->stuck_claims = std::move(found);
      break;
    }
  }
}

void FetchClaims::Job::Claim() {
  CacheFile& cache = *file->cache;
  uint64_t g = granules.first;
  for (; g < granules.end(); ++g) {
    if (cache.Has(g)) {
      answer.fates.push_back(ClaimFate::kThere);
      continue;
    }
    claimed_ = {g, cache.Claim(g, granules.end() - g)};
    if (claimed_) break;
    const GranuleRun claim = cache.ClaimedElsewhere(g);
    answer.fates.push_back(claim ? Elsewhere(claim) : ClaimFate::kFree);
  }
  // Who had the claim before may have published.
  uint64_t mine = 0;
  while (mine < claimed_.count && !cache.Has(claimed_.first + mine)) ++mine;
  if (mine < claimed_.count) {
    cache.Unclaim(claimed_.first + mine, claimed_.count - mine);
    claimed_.count = mine;
  }
  answer.fates.resize(answer.fates.size() + mine, ClaimFate::kMine);
  answer.fates.resize(granules.count, ClaimFate::kFree);
}

ClaimFate FetchClaims::Job::Elsewhere(const GranuleRun& claim) {
  const auto& stuck = file->stuck_claims;
  if (std::find(stuck.begin(), stuck.end(), claim) != stuck.end()) {
    return ClaimFate::kStuck;
  }
  if (!answer.elsewhere) answer.elsewhere = claim;
  return ClaimFate::kElsewhere;
}

void FetchClaims::Job::TakeBack() const {
  if (claimed_) file->cache->Unclaim(claimed_.first, claimed_.count);
}

void FetchClaims::Queue(std::shared_ptr<Job> job) {
  MutexLock lock(mutex_);
  jobs_.push_back(std::move(job));
}

void FetchClaims::Claim(std::shared_ptr<FetchFile> file, GranuleRun granules,
                        Done done) {
  auto job = std::make_shared<Job>();
  job->kind = Job::Kind::kClaim;
  job->file = std::move(file);
  job->granules = granules;
  job->done = std::move(done);
  Queue(std::move(job));
}

void FetchClaims::Look(std::shared_ptr<FetchFile> file,
                       std::vector<uint64_t> granules, Done done) {
  auto job = std::make_shared<Job>();
  job->kind = Job::Kind::kLook;
  job->file = std::move(file);
  job->wanted = std::move(granules);
  job->done = std::move(done);
  Queue(std::move(job));
}

void FetchClaims::Release(std::shared_ptr<FetchFile> file,
                          GranuleRun granules) {
  auto job = std::make_shared<Job>();
  job->kind = Job::Kind::kRelease;
  job->file = std::move(file);
  job->granules = granules;
  Queue(std::move(job));
}

void FetchClaims::Distrust(std::shared_ptr<FetchFile> file) {
  auto job = std::make_shared<Job>();
  job->kind = Job::Kind::kDistrust;
  job->file = std::move(file);
  Queue(std::move(job));
}

void FetchClaims::Run() {
  {
    MutexLock lock(mutex_);
    if (working_ || jobs_.empty()) return;
    working_ = true;
  }
  pool_.Submit([turn = std::make_shared<Turn>(shared_from_this())]() mutable {
    turn.reset();
  });
}

void FetchClaims::WorkOff() {
  for (;;) {
    auto batch = std::make_shared<Batch>();
    std::vector<std::shared_ptr<Job>> jobs;
    {
      MutexLock lock(mutex_);
      if (jobs_.empty()) {
        working_ = false;
        return;
      }
      jobs.swap(jobs_);
    }
    batch->jobs = overdue_;
    batch->jobs.insert(batch->jobs.end(), jobs.begin(), jobs.end());
    bool answered = calls_->Run([batch] {
      for (const auto& job : batch->jobs) job->Work();
      {
        MutexLock lock(batch->mutex);
        batch->ended = true;
        if (!batch->given_up) return;
      }
      for (const auto& job : batch->jobs) job->TakeBack();
    });
    if (!answered) {
      MutexLock lock(batch->mutex);
      answered = batch->ended;
      batch->given_up = !answered;
    }
    if (answered) overdue_.clear();
    for (const auto& job : jobs) {
      if (!answered && job->kind == Job::Kind::kRelease) {
        overdue_.push_back(job);
      }
      if (!job->done) continue;
      auto done = std::move(job->done);
      done(answered ? std::optional(std::move(job->answer)) : std::nullopt);
    }
  }
}

}  // namespace weightfs
