#include "fs/repo.h"

#include <sys/stat.h>

#include <algorithm>
#include <future>
#include <set>
#include <utility>

#include "formats/base/log.h"
#include "formats/model_file.h"
#include "formats/safetensors.h"
#include "formats/shards.h"

namespace weightfs {
namespace {

// Objects kept open: each holds two descriptors of the cache.
constexpr size_t kMaxOpenFiles = 512;

// An object whose file in the cache broke is opened anew, but not all the time.
constexpr std::chrono::seconds kReopenPause{1};

// Where a file could not be sealed, it is not hashed for that all the time.
constexpr std::chrono::seconds kSealPause{60};

// A file whose whole-file hash was wrong so often is given to nobody.
constexpr int kWrongTries = 2;

// A file of which no byte may be given.
class RefusedObject final : public Object {
 public:
  RefusedObject(FileInfo file, Error why)
      : info_(std::move(file)), why_(std::move(why)) {}

  const FileInfo& info() const override { return info_; }
  bool TryRead(uint64_t, std::span<std::byte>) override { return false; }
  ReadId StartRead(uint64_t, std::span<std::byte>, const ReadOptions&,
                   Done done) override {
    done(why_);
    return 0;
  }
  void CancelRead(ReadId) override {}
  std::string WaitsFor(ReadId) const override { return "nothing"; }
  uint64_t Prefetch(uint64_t, uint64_t length) override { return length; }
  double CachedFraction() const override { return 0; }

 private:
  const FileInfo info_;
  const Error why_;
};

std::shared_ptr<Object> RefuseWrong(const FileInfo& info) {
  return std::make_shared<RefusedObject>(
      info, MakeError(Code::kCorrupt,
                      "{}: twice, the bytes that the origin sent were not "
                      "those of {}; mount again to try again",
                      info.path, info.id.ToString()));
}

std::shared_ptr<Object> RefuseUnchecked(const FileInfo& info) {
  return std::make_shared<RefusedObject>(
      info, MakeError(Code::kIo,
                      "{}: --verify=strict gives no byte that was not checked "
                      "in the cache, and the cache cannot be used for it now",
                      info.path));
}

constexpr std::string_view kSafetensors = ".safetensors";

// Worth another try later, as against bytes that are wrong.
bool IsTransient(Code code) {
  return code != Code::kCorrupt && code != Code::kUnsupported;
}

// Of bytes that could not be read. Whatever the origin said, an HTTP 400 say,
// is not about what is in them.
Error Unread(Error error) {
  if (IsTransient(error.code())) return error;
  return Error(Code::kIo, error.message());
}

// Names of folders and files that stand beside a set's tensors under
// tensors/FORMAT/<folder>: the folders on the way to other shown sets.
std::set<std::string> TakenNames(const Catalog& catalog,
                                 const std::string& folder) {
  std::set<std::string> taken;
  const std::string prefix = folder.empty() ? "" : folder + "/";
  for (const auto& [shown, set] : catalog.shown()) {
    if (shown == folder || !shown.starts_with(prefix)) continue;
    taken.insert(shown.substr(prefix.size(),
                              shown.find('/', prefix.size()) - prefix.size()));
  }
  return taken;
}

std::vector<std::vector<IndexedSet::Extent>> ExtentsOf(
    const TensorIndex& index) {
  std::vector<std::vector<IndexedSet::Extent>> extents(index.objects().size());
  const auto& tensors = index.tensors();
  for (uint32_t i = 0; i < tensors.size(); ++i) {
    for (const SourceRange& range : tensors[i].data) {
      extents[range.object].push_back(
          {range.offset, range.offset + range.length, i});
    }
  }
  for (auto& of_file : extents) {
    std::sort(of_file.begin(), of_file.end(), [](const auto& a, const auto& b) {
      return std::pair(a.begin, b.end) < std::pair(b.begin, a.end);
    });
    // Tensors may share bytes: these are the first one's.
    uint64_t end = 0;
    std::erase_if(of_file, [&end](IndexedSet::Extent& extent) {
      extent.begin = std::max(extent.begin, end);
      if (extent.begin >= extent.end) return true;
      end = extent.end;
      return false;
    });
  }
  return extents;
}

}  // namespace

Result<std::unique_ptr<Repo>> Repo::Open(const Parts& parts,
                                         const RepoOptions& options) {
  ASSIGN_OR_RETURN(auto snapshot, parts.origin->List());
  return std::unique_ptr<Repo>(new Repo(parts, options, std::move(snapshot)));
}

Repo::Repo(const Parts& parts, const RepoOptions& options,
           std::shared_ptr<const Snapshot> snapshot)
    : parts_(parts),
      options_(options),
      snapshot_(std::move(snapshot)),
      catalog_(Catalog::Create(*snapshot_)),
      opens_("wfs-open", 2, options_.disk_patience),
      sets_(catalog_.sets().size()) {
  if (parts_.verifier == nullptr) return;
  parts_.verifier->SetOnWrong([this](const FileInfo& file) { OnWrong(file); });
}

std::shared_ptr<Object> Repo::FindOpenFile(uint32_t file) {
  OpenEntry dropped;  // closed without the lock
  MutexLock lock(mutex_);
  auto it = open_by_file_.find(file);
  if (it == open_by_file_.end()) return nullptr;
  const OpenEntry& entry = *it->second;
  if (entry.cached != nullptr && !entry.cached->IsWhole() &&
      Clock::System().Now() >= entry.opened + kReopenPause) {
    dropped = std::move(*it->second);
    open_.erase(it->second);
    open_by_file_.erase(it);
    return nullptr;
  }
  open_.splice(open_.begin(), open_, it->second);
  return it->second->object;
}

std::optional<std::shared_ptr<CacheFile>> Repo::OpenInCache(
    const FileInfo& info) {
  const std::string& name_space = parts_.origin->cache_namespace();
  if (parts_.cache == nullptr || name_space.empty() || info.size == 0) {
    return nullptr;
  }
  auto opened = std::make_shared<Result<std::shared_ptr<CacheFile>>>(nullptr);
  const bool answered = opens_.Run(
      [cache = parts_.cache, name_space, id = info.id, size = info.size,
       opened] { *opened = cache->OpenObject(name_space, id, size); });
  if (!answered) {
    if (!slow_cache_logged_.exchange(true)) {
      LogWarning(
          "the cache does not answer, so files are read without it until it "
          "does folder={} file={}",
          parts_.cache->folder(), info.path);
    }
    return std::nullopt;
  }
  slow_cache_logged_ = false;
  if (opened->has_value()) return std::move(**opened);
  LogWarning("not kept in the cache: {} file={}", opened->error().ToString(),
             info.path);
  return nullptr;
}

std::shared_ptr<Object> Repo::OpenFile(uint32_t file) {
  if (auto open = FindOpenFile(file)) return open;
  const FileInfo& info = snapshot_->files[file];
  {
    MutexLock lock(mutex_);
    const auto wrong = wrong_.find(file);
    if (wrong != wrong_.end() && wrong->second >= kWrongTries) {
      return RefuseWrong(info);
    }
  }
  auto in_cache = OpenInCache(info);
  // Not kept: the cache may answer the next time.
  if (!in_cache) return MakeObject(file, nullptr);
  if (parts_.strict != nullptr && *in_cache == nullptr && info.size > 0) {
    return MakeObject(file, nullptr);
  }
  auto object = MakeObject(file, *in_cache);

  OpenEntry dropped;  // closed without the lock
  {
    MutexLock lock(mutex_);
    if (auto it = open_by_file_.find(file); it != open_by_file_.end()) {
      dropped.object = std::move(object);
      return it->second->object;
    }
    if (open_.size() >= kMaxOpenFiles) {
      dropped = std::move(open_.back());
      open_by_file_.erase(dropped.file);
      open_.pop_back();
    }
    open_.push_front({file, object, *in_cache, Clock::System().Now()});
    open_by_file_[file] = open_.begin();
  }
  if (parts_.verifier != nullptr && *in_cache != nullptr) {
    parts_.verifier->Watch(info, *in_cache);
  }
  return object;
}

std::shared_ptr<Object> Repo::MakeObject(
    uint32_t file, const std::shared_ptr<CacheFile>& in_cache) {
  const FileInfo& info = snapshot_->files[file];
  if (parts_.strict == nullptr || info.size == 0) {
    return parts_.fetcher->OpenObject(info, in_cache);
  }
  if (in_cache == nullptr) return RefuseUnchecked(info);
  return parts_.strict->Wrap(parts_.fetcher->OpenObject(info, in_cache),
                             in_cache, [this, file] { return OpenFile(file); });
}

void Repo::SetOnWrong(std::function<void(uint32_t file)> on_wrong) {
  MutexLock lock(mutex_);
  on_wrong_ = std::move(on_wrong);
}

void Repo::OnWrong(const FileInfo& info) {
  std::vector<OpenEntry> dropped;  // closed without the lock
  std::vector<uint32_t> files;     // of the same bytes
  std::function<void(uint32_t)> on_wrong;
  {
    MutexLock lock(mutex_);
    on_wrong = on_wrong_;
    for (uint32_t file = 0; file < snapshot_->files.size(); ++file) {
      if (snapshot_->files[file].id != info.id) continue;
      files.push_back(file);
      if (++wrong_[file] == kWrongTries) {
        LogError("the origin sent wrong bytes again; reads of it fail file={}",
                 snapshot_->files[file].path);
      }
      const auto it = open_by_file_.find(file);
      if (it == open_by_file_.end()) continue;
      dropped.push_back(std::move(*it->second));
      open_.erase(it->second);
      open_by_file_.erase(it);
    }
  }
  if (!on_wrong) return;
  for (const uint32_t file : files) on_wrong(file);
}

Repo::Sharing Repo::ShareFile(uint32_t file,
                              const std::shared_ptr<CacheFile>& in_use) {
  const auto object = OpenFile(file);
  std::shared_ptr<CacheFile> cached;
  {
    MutexLock lock(mutex_);
    const auto it = open_by_file_.find(file);
    if (it != open_by_file_.end()) cached = it->second->cached;
  }
  struct Answer {
    Sharing sharing;
    bool unsealed = false;
  };
  auto answer = std::make_shared<Answer>();
  const bool answered = opens_.Run([answer, cached, in_use] {
    Sharing& sharing = answer->sharing;
    sharing.in_use_is_wrong = in_use != nullptr && !in_use->verified();
    if (cached == nullptr) return;
    auto fd = cached->ShareSealed();
    answer->unsealed = !fd.has_value() && fd.error().code() == Code::kStale;
    struct stat status {};
    if (!fd.has_value() || ::fstat(fd->get(), &status) != 0) return;
    sharing.sealed =
        Shared{std::move(*fd), cached, {status.st_dev, status.st_ino}};
  });
  if (!answered) return {};
  if (answer->unsealed) AskToSeal(file);
  return std::move(answer->sharing);
}

void Repo::AskToSeal(uint32_t file) {
  if (parts_.verifier == nullptr) return;
  const auto now = Clock::System().Now();
  std::shared_ptr<CacheFile> cached;
  {
    MutexLock lock(mutex_);
    const auto it = open_by_file_.find(file);
    if (it == open_by_file_.end()) return;
    OpenEntry& entry = *it->second;
    if (entry.asked_to_seal != Clock::Time{} &&
        now < entry.asked_to_seal + kSealPause) {
      return;
    }
    entry.asked_to_seal = now;
    cached = entry.cached;
  }
  if (cached != nullptr) {
    parts_.verifier->WatchToSeal(snapshot_->files[file], cached);
  }
}

bool Repo::IsVerified(uint32_t file) {
  const auto object = OpenFile(file);
  MutexLock lock(mutex_);
  const auto it = open_by_file_.find(file);
  return it != open_by_file_.end() && it->second->cached != nullptr &&
         it->second->cached->verified();
}

std::shared_ptr<const IndexedSet> Repo::FindIndex(uint32_t set) {
  MutexLock lock(mutex_);
  return sets_[set].ready;
}

void Repo::WhenIndexed(uint32_t set, std::function<void(const Indexed&)> done) {
  Indexed outcome = std::shared_ptr<const IndexedSet>();
  bool load = false;
  {
    MutexLock lock(mutex_);
    SetState& state = sets_[set];
    const bool retry = state.phase == SetState::Phase::kFailed &&
                       Clock::System().Now() >= state.retry_at;
    if (state.phase == SetState::Phase::kReady) {
      outcome = state.ready;
    } else if (state.phase == SetState::Phase::kFailed && !retry) {
      outcome = *state.error;
    } else {
      load = state.phase != SetState::Phase::kLoading;
      state.phase = SetState::Phase::kLoading;
      state.waiters.push_back(std::move(done));
      done = nullptr;
    }
  }
  if (done) return done(outcome);
  if (load && !parts_.indexers->Submit([this, set] { Load(set); })) {
    std::vector<std::function<void(const Indexed&)>> waiters;
    {
      MutexLock lock(mutex_);
      waiters.swap(sets_[set].waiters);
      sets_[set].phase = SetState::Phase::kAbsent;
    }
    const Indexed stopped = Error(Code::kCancelled, "shutting down");
    for (auto& waiter : waiters) waiter(stopped);
  }
}

Repo::Indexed Repo::WaitForIndex(uint32_t set) {
  std::promise<Indexed> promise;
  WhenIndexed(set, [&](const Indexed& indexed) { promise.set_value(indexed); });
  return promise.get_future().get();
}

void Repo::PrefetchProbe(uint32_t file) {
  const FileInfo& info = snapshot_->files[file];
  const IndexProbe probe = ProbeOf(info.path, info.size);
  const auto object = OpenFile(file);
  object->Prefetch(0, probe.head);
  if (probe.tail > 0) object->Prefetch(info.size - probe.tail, probe.tail);
}

void Repo::LoadShownIndexes() {
  for (const auto& [folder, shown] : catalog_.shown()) {
    const uint32_t set = shown;
    for (uint32_t file : catalog_.sets()[set].files) PrefetchProbe(file);
    WhenIndexed(set, [path = catalog_.sets()[set].path](const Indexed& loaded) {
      if (loaded.has_value()) return;
      LogWarning("no tensors of a weight set: {} set={}",
                 loaded.error().ToString(), path);
    });
  }
}

void Repo::Load(uint32_t set) {
  const Indexed outcome = Build(set);
  std::vector<std::function<void(const Indexed&)>> waiters;
  {
    MutexLock lock(mutex_);
    SetState& state = sets_[set];
    waiters.swap(state.waiters);
    if (outcome.has_value()) {
      state.phase = SetState::Phase::kReady;
      state.ready = *outcome;
    } else {
      state.phase = SetState::Phase::kFailed;
      state.error = std::make_shared<const Error>(outcome.error());
      // What is wrong for good stays so: the commit is pinned.
      state.retry_at = IsTransient(outcome.error().code())
                           ? Clock::System().Now() + options_.index_retry
                           : Clock::Time::max();
    }
  }
  for (auto& waiter : waiters) waiter(outcome);
}

Result<std::vector<uint32_t>> Repo::SetFiles(
    const WeightSet& set, std::unique_ptr<ShardIndex>& shard_index,
    std::vector<std::string>& problems) {
  if (!set.index_file) return set.files;
  ObjectSource source(OpenFile(*set.index_file), options_.metadata_timeout);
  auto read = ReadShardIndex(source);
  if (!read.has_value()) {
    if (source.failed()) return Unread(std::move(read).error());
    if (set.files.empty()) {
      return std::move(read).error();
    }
    problems.push_back(read.error().message());
    return set.files;
  }
  shard_index = std::make_unique<ShardIndex>(std::move(*read));
  std::set<std::string> named;
  for (const auto& [tensor, file] : shard_index->weight_map) named.insert(file);
  std::vector<uint32_t> files;
  for (const std::string& name : named) {
    const std::string path =
        set.folder.empty() ? name : set.folder + "/" + name;
    const FileInfo* info = snapshot_->Find(path);
    if (info == nullptr) {
      problems.push_back(path + " is named by the index and missing");
      continue;
    }
    files.push_back(static_cast<uint32_t>(info - snapshot_->files.data()));
  }
  return files;
}

Repo::Indexed Repo::Build(uint32_t set_ordinal) {
  const WeightSet& set = catalog_.sets()[set_ordinal];
  auto indexed = std::make_shared<IndexedSet>();
  indexed->problems = set.problems;
  std::unique_ptr<ShardIndex> shard_index;
  ASSIGN_OR_RETURN(indexed->files,
                   SetFiles(set, shard_index, indexed->problems));
  for (uint32_t file : indexed->files) PrefetchProbe(file);
  // Of safetensors what is longer than that: all at once, too.
  for (uint32_t file : indexed->files) {
    if (!snapshot_->files[file].path.ends_with(kSafetensors)) continue;
    const auto object = OpenFile(file);
    ObjectSource source(object, options_.metadata_timeout);
    auto end = SafetensorsHeaderEnd(source);
    if (source.failed()) return Unread(std::move(end).error());
    if (end.value_or(0) > kSafetensorsProbe) object->Prefetch(0, *end);
  }
  std::vector<Shard> shards;
  for (uint32_t file : indexed->files) {
    ObjectSource source(OpenFile(file), options_.metadata_timeout);
    auto read = ReadTensors(source);
    if (!read.has_value() && source.failed()) {
      return Unread(std::move(read).error());
    }
    Shard shard{snapshot_->files[file].path, Error(Code::kCorrupt, "not read")};
    if (read.has_value()) {
      shard.index = std::make_shared<const TensorIndex>(std::move(*read));
    } else {
      shard.index = std::move(read).error();
    }
    shards.push_back(std::move(shard));
  }
  if (!shards.empty() &&
      std::none_of(shards.begin(), shards.end(),
                   [](const Shard& s) { return s.index.has_value(); })) {
    return shards.front().index.error();
  }
  ASSIGN_OR_RETURN(auto merged,
                   MergeShards(shards, shard_index.get(), set.folder));
  indexed->index = std::move(merged.index);
  for (auto& problem : merged.problems) {
    indexed->problems.push_back(std::move(problem));
  }
  // Only the files that gave tensors count as objects; see MergedSet.
  std::vector<uint32_t> files;
  for (const std::string& path : indexed->index.objects()) {
    files.push_back(
        static_cast<uint32_t>(snapshot_->Find(path) - snapshot_->files.data()));
  }
  indexed->files = std::move(files);
  indexed->names = std::make_unique<const NameTree>(
      indexed->index, TakenNames(catalog_, set.folder));
  indexed->extents = ExtentsOf(indexed->index);
  return std::shared_ptr<const IndexedSet>(std::move(indexed));
}

uint64_t Repo::CachedBytes(uint32_t file) {
  const uint64_t size = snapshot_->files[file].size;
  return static_cast<uint64_t>(OpenFile(file)->CachedFraction() *
                               static_cast<double>(size));
}

}  // namespace weightfs
