#include "cache/cache_survey.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <thread>
#include <utility>

#include "cache/cache_paths.h"
#include "cache/object_files.h"
#include "cache/open_cache_file.h"
#include "cache/slab_evictor.h"
#include "cache/slab_locks.h"
#include "formats/base/clock.h"

namespace weightfs {
namespace {

// Nobody else evicts meanwhile, unless he takes too long: what two find in each
// other's hands would look as if it were in use.
constexpr std::chrono::seconds kEvictorPatience{10};
constexpr std::chrono::milliseconds kEvictorPause{20};

UniqueFd LockEvictor(const CacheFolder& folder) {
  UniqueFd lock(::openat(folder.fd(), "evictor.lock",
                         O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock.valid()) return lock;
  const auto until = Clock::System().Now() + kEvictorPatience;
  while (SetOfdLock(lock.get(), F_WRLCK, 0, 1) == -EAGAIN &&
         Clock::System().Now() < until) {
    std::this_thread::sleep_for(kEvictorPause);
  }
  return lock;
}

// What is on the disk of the object; 0 if it is not there.
uint64_t DiskBytes(const CacheFolder& folder, const std::string& path) {
  struct stat status {};
  if (::fstatat(folder.fd(), (path + "/data").c_str(), &status,
                AT_SYMLINK_NOFOLLOW) != 0) {
    return 0;
  }
  return static_cast<uint64_t>(status.st_blocks) * S_BLKSIZE;
}

}  // namespace

CacheSurvey::CacheSurvey(std::shared_ptr<CacheParts> parts)
    : parts_(std::move(parts)) {}

CacheSurvey::~CacheSurvey() = default;

Result<std::unique_ptr<CacheSurvey>> CacheSurvey::Open(
    const std::string& folder, CacheDisk& disk) {
  struct stat status {};
  if (::stat(folder.c_str(), &status) != 0 && errno == ENOENT) {
    return MakeError(Code::kNotFound, "there is no cache folder {}", folder);
  }
  ASSIGN_OR_RETURN(auto opened, CacheFolder::Open(folder));
  return std::unique_ptr<CacheSurvey>(new CacheSurvey(
      std::make_shared<CacheParts>(std::move(opened), disk, CacheLimits())));
}

CacheSurvey::Found CacheSurvey::Look(const std::string& cache_namespace,
                                     const FileInfo& file) {
  const auto claimed = ObjectPath(cache_namespace, file.id);
  if (!claimed.has_value() || file.size == 0 || file.size > kMaxObjectSize) {
    return {};
  }
  const uint64_t owner = NamespaceNumber(cache_namespace);
  Found found = LookAt(VerifiedPath(file.id), file, owner);
  if (!found.granules.empty()) return found;
  found = LookAt(*claimed, file, owner);
  if (found.granules.empty()) {
    found.granules.resize(MetaLayout::For(file.size).granules);
  }
  return found;
}

CacheSurvey::Found CacheSurvey::LookAt(const std::string& path,
                                       const FileInfo& file, uint64_t owner) {
  const auto files = OpenExistingFiles({.folder = *parts_->folder,
                                        .disk = parts_->disk,
                                        .space = parts_->space,
                                        .id = file.id,
                                        .size = file.size,
                                        .owner = owner},
                                       path);
  if (!files.has_value()) return {};
  const MetaFile& meta = *files->meta;
  const bool is_claim = path.starts_with(kObjectsFolder);
  // As readers do: one that is not verified is its owner's alone.
  if (is_claim ? meta.owner() != owner : !meta.verified()) return {};
  Found found;
  found.granules.resize(meta.layout().granules);
  for (uint64_t g = 0; g < meta.layout().granules; ++g) {
    found.granules[g] = meta.Entry(g) != 0;
  }
  found.verified = meta.verified();
  // What was loaded from a mapping that broke does not count.
  if (meta.faulted() || meta.state() == MetaState::kPoisoned) return {};
  return found;
}

CacheSurvey::Dropped CacheSurvey::Drop(const std::string& cache_namespace,
                                       const FileInfo& file) {
  Dropped dropped;
  const auto claimed = ObjectPath(cache_namespace, file.id);
  if (!claimed.has_value() || file.size == 0) return dropped;
  const UniqueFd lock = LockEvictor(*parts_->folder);
  // In this order: what is demoted comes to lie where its owner claims it.
  const std::string verified = VerifiedPath(file.id);
  DropAt(verified, dropped);
  DropAt(*claimed, dropped);
  dropped.kept = DiskBytes(*parts_->folder, verified) +
                 DiskBytes(*parts_->folder, *claimed);
  return dropped;
}

void CacheSurvey::DropAt(const std::string& path, Dropped& dropped) {
  CacheFolder& folder = *parts_->folder;
  const uint64_t bytes = DiskBytes(folder, path);
  if (RemoveUnusedObject(folder, path)) {
    dropped.freed += bytes;
    return;
  }
  // Somebody has it open: what he does not use at this moment can go.
  auto evictor = SlabEvictor::Open(folder, parts_->disk, path);
  if (!evictor.has_value()) {
    if (evictor.error().code() != Code::kNotFound) {
      dropped.why = evictor.error().message();
    }
    return;
  }
  for (uint64_t slab = 0; slab < (*evictor)->slabs(); ++slab) {
    const auto evicted = (*evictor)->Evict(slab);
    if (evicted.has_value()) {
      dropped.freed += *evicted;
    } else if (evicted.error().code() != Code::kStale) {
      dropped.why = evicted.error().message();
    }
  }
  (*evictor)->Demote();
}

}  // namespace weightfs
