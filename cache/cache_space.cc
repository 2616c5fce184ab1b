#include "cache/cache_space.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "cache/cache_paths.h"
#include "cache/meta_file.h"
#include "cache/slab_evictor.h"
#include "cache/slab_locks.h"
#include "formats/base/log.h"
#include "formats/base/unique_fd.h"

namespace weightfs {
namespace {

constexpr char kLockFile[] = "evictor.lock";
constexpr std::string_view kBad = ".bad-";
constexpr uint64_t kMaxHeadroom = uint64_t{1} << 30;
// So that up to so many processes can use up their permits at once.
constexpr uint64_t kSharers = 4;
constexpr int kMaxDepth = 16;
// Where nothing could be evicted, there is no other look before.
constexpr std::chrono::milliseconds kFullPause{100};
// Evicted at once, at least: many small holes cost more than they bring.
constexpr uint64_t kLeastEvicted = 16 * kGranuleSize;

// One slab that may be evicted.
struct Candidate {
  uint32_t recency;  // minutes
  uint32_t object;   // ordinal
  uint64_t slab;
  auto operator<=>(const Candidate&) const = default;
};

// Slabs' recencies as they stand in `meta`; none if it cannot be read.
std::vector<uint32_t> ReadRecencies(const CacheFolder& folder,
                                    const std::string& path) {
  const UniqueFd meta(::openat(folder.fd(), (path + "/meta").c_str(),
                               O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  struct stat data {};
  if (!meta.valid() ||
      ::fstatat(folder.fd(), (path + "/data").c_str(), &data,
                AT_SYMLINK_NOFOLLOW) != 0 ||
      !S_ISREG(data.st_mode) ||
      static_cast<uint64_t>(data.st_size) > kMaxObjectSize) {
    return {};
  }
  const auto layout = MetaLayout::For(static_cast<uint64_t>(data.st_size));
  std::vector<uint32_t> fields(2 * layout.slabs);
  const auto bytes = std::as_writable_bytes(std::span(fields));
  const ssize_t got = ::pread(meta.get(), bytes.data(), bytes.size(),
                              static_cast<off_t>(kMetaHeaderSize));
  if (got != static_cast<ssize_t>(bytes.size())) return {};
  std::vector<uint32_t> recencies;
  for (size_t i = 0; i < fields.size(); i += 2) recencies.push_back(fields[i]);
  return recencies;
}

uint64_t UsedBelow(const CacheFolder& folder, const std::string& path,
                   int depth) {
  struct stat status {};
  if (::fstatat(folder.fd(), path.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) {
    return 0;
  }
  uint64_t used = static_cast<uint64_t>(status.st_blocks) * S_BLKSIZE;
  if (!S_ISDIR(status.st_mode) || depth == 0) return used;
  const std::string prefix = path == "." ? "" : path + "/";
  std::string below;
  for (const std::string& name : folder.Names(path)) {
    below.assign(prefix).append(name);
    used += UsedBelow(folder, below, depth - 1);
  }
  return used;
}

}  // namespace

// What eviction may take.
struct CacheSpace::Found {
  std::vector<std::string> objects;  // with bytes or not
  std::vector<std::string> bad;      // were set aside
};

bool CacheSpace::Take(uint64_t bytes) {
  if (limits_.unlimited()) return true;
  {
    MutexLock lock(mutex_);
    while (measuring_ && permit_ < bytes) measured_.Wait(mutex_);
    if (permit_ >= bytes) {
      permit_ -= bytes;
      return true;
    }
    if (Clock::System().Now() < full_until_) {
      ++stats_.refusals;
      return false;
    }
    measuring_ = true;
  }
  MakeRoom();
  const uint64_t room = Room();
  MutexLock lock(mutex_);
  measuring_ = false;
  measured_.NotifyAll();
  permit_ = room / kSharers;
  if (permit_ < bytes && room / 2 >= bytes) permit_ = bytes;
  if (permit_ >= bytes) {
    permit_ -= bytes;
    return true;
  }
  full_until_ = Clock::System().Now() + kFullPause;
  ++stats_.refusals;
  return false;
}

void CacheSpace::Trim() {
  if (!limits_.unlimited()) MakeRoom();
}

CacheSpace::Stats CacheSpace::stats() const {
  MutexLock lock(mutex_);
  return stats_;
}

uint64_t CacheSpace::UsedBytes() const {
  return UsedBelow(folder_, ".", kMaxDepth);
}

uint64_t CacheSpace::Room() const {
  uint64_t room = UINT64_MAX;
  if (limits_.max_bytes != UINT64_MAX) {
    const uint64_t used = UsedBytes();
    room = limits_.max_bytes - std::min(used, limits_.max_bytes);
  }
  struct statvfs disk {};
  if (limits_.keep_free > 0 && ::fstatvfs(folder_.fd(), &disk) == 0) {
    const uint64_t free = uint64_t{disk.f_bavail} * disk.f_frsize;
    room = std::min(room, free - std::min(free, limits_.keep_free));
  }
  return room;
}

uint64_t CacheSpace::Headroom() const {
  const uint64_t limit =
      limits_.max_bytes != UINT64_MAX ? limits_.max_bytes : limits_.keep_free;
  return std::min(limit / 8, kMaxHeadroom);
}

void CacheSpace::MakeRoom() {
  const uint64_t headroom = Headroom();
  const uint64_t room = Room();
  if (room >= headroom / 2) return;
  // Another process that evicts makes room for this one, too.
  const UniqueFd lock(::openat(folder_.fd(), kLockFile,
                               O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW,
                               0600));
  if (!lock.valid() || SetOfdLock(lock.get(), F_WRLCK, 0, 1) != 0) return;
  // More than the headroom is missing where the limits were exceeded.
  uint64_t excess = 0;
  if (room == 0 && limits_.max_bytes != UINT64_MAX) {
    const uint64_t used = UsedBytes();
    excess = used - std::min(used, limits_.max_bytes);
  }
  struct statvfs disk {};
  if (room == 0 && ::fstatvfs(folder_.fd(), &disk) == 0) {
    const uint64_t free = uint64_t{disk.f_bavail} * disk.f_frsize;
    excess =
        std::max(excess, limits_.keep_free - std::min(free, limits_.keep_free));
  }
  Evict(excess + headroom - std::min(room, headroom));
}

CacheSpace::Found CacheSpace::Walk() const {
  Found found;
  for (const char* kind : {"sha256", "git"}) WalkObjects(kind, &found);
  const std::string objects(kObjectsFolder);
  for (const std::string& space : folder_.Names(objects)) {
    for (const char* kind : {"sha256", "git"}) {
      WalkObjects(fmt::format("{}/{}/{}", objects, space, kind), &found);
    }
  }
  return found;
}

void CacheSpace::WalkObjects(const std::string& folder, Found* found) const {
  for (const std::string& prefix : folder_.Names(folder)) {
    std::string below = folder;
    below.append("/").append(prefix);
    for (const std::string& name : folder_.Names(below)) {
      const bool bad = name.find(kBad) != std::string::npos;
      auto& objects = bad ? found->bad : found->objects;
      objects.emplace_back(below).append("/").append(name);
    }
  }
}

uint64_t CacheSpace::EvictFrom(const std::string& path, uint64_t slab,
                               uint64_t wanted) {
  auto evictor = SlabEvictor::Open(folder_, disk_, path);
  if (!evictor.has_value()) return 0;
  if (slab >= (*evictor)->slabs()) return 0;
  auto freed = (*evictor)->Evict(slab, wanted);
  (*evictor)->Demote();
  if (freed.has_value()) return *freed;
  if (freed.error().code() != Code::kStale) {
    LogWarning("cannot evict from the cache object={} why={}", path,
               freed.error().message());
  }
  return 0;
}

void CacheSpace::Evict(uint64_t wanted) {
  const Found found = Walk();
  const uint64_t before = UsedBytes();
  uint64_t freed = 0;
  for (const std::string& path : found.bad) {
    freed += UsedBelow(folder_, path, 1);
    folder_.Remove(path);
  }
  std::vector<Candidate> candidates;
  for (uint32_t i = 0; i < found.objects.size() && freed < wanted; ++i) {
    const auto recencies = ReadRecencies(folder_, found.objects[i]);
    for (uint64_t slab = 0; slab < recencies.size(); ++slab) {
      candidates.push_back({recencies[slab], i, slab});
    }
  }
  std::sort(candidates.begin(), candidates.end());
  std::vector<bool> touched(found.objects.size());
  for (const Candidate& candidate : candidates) {
    if (freed >= wanted) break;
    const uint64_t got =
        EvictFrom(found.objects[candidate.object], candidate.slab,
                  std::max(wanted - freed, kLeastEvicted));
    freed += got;
    if (got > 0) touched[candidate.object] = true;
  }
  // Empty ones take room for their `meta`; some disks can punch no holes.
  for (size_t i = 0; i < found.objects.size(); ++i) {
    struct stat data {};
    const std::string file = found.objects[i] + "/data";
    const bool there =
        ::fstatat(folder_.fd(), file.c_str(), &data, AT_SYMLINK_NOFOLLOW) == 0;
    if (there && (data.st_blocks == 0 || freed < wanted)) {
      const uint64_t size = UsedBelow(folder_, found.objects[i], 1);
      if (RemoveUnusedObject(folder_, found.objects[i])) freed += size;
    }
  }
  const uint64_t after = UsedBytes();
  LogDebug("evicted from the cache bytes={} wanted={}",
           before - std::min(after, before), wanted);
  MutexLock lock(mutex_);
  stats_.evicted_bytes += before - std::min(after, before);
}

uint64_t LargestWholeObject(uint64_t max_bytes) {
  if (max_bytes == UINT64_MAX) return UINT64_MAX;
  const uint64_t headroom = std::min(max_bytes / 8, kMaxHeadroom);
  const uint64_t room = max_bytes - headroom;
  // `meta`, the folders and whatever else is there take their part.
  constexpr uint64_t kOthers = uint64_t{256} << 10;
  const uint64_t others = room / 1024 + kOthers;
  return room > others ? room - others : 0;
}

}  // namespace weightfs
