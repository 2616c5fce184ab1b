#include "cache/slab_evictor.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "cache/cache_paths.h"
#include "cache/slab_locks.h"
#include "formats/base/log.h"

namespace weightfs {
namespace {

Result<UniqueFd> OpenFile(const CacheFolder& folder, const std::string& path) {
  UniqueFd fd(::openat(folder.fd(), path.c_str(),
                       O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (fd.valid()) return fd;
  const int error = errno;
  if (error == ENOENT || error == ENOTDIR) return Error(Code::kNotFound, path);
  return DiskError(error, path);
}

// A range of `data`, locked for this evictor alone.
class ExclusiveLock {
 public:
  ExclusiveLock(int fd, uint64_t start, uint64_t length)
      : fd_(fd),
        start_(start),
        length_(length),
        result_(SetOfdLock(fd, F_WRLCK, start, length)) {}
  ~ExclusiveLock() {
    if (result_ == 0) SetOfdLock(fd_, F_UNLCK, start_, length_);
  }
  ExclusiveLock(const ExclusiveLock&) = delete;
  ExclusiveLock& operator=(const ExclusiveLock&) = delete;

  int result() const { return result_; }  // 0 or -errno

 private:
  const int fd_;
  const uint64_t start_;
  const uint64_t length_;
  const int result_;
};

// Where blocks are in [begin, end) of a sparse file.
struct Blocks {
  uint64_t begin;  // of the first; `end` if there are none
  uint64_t bytes;
};

// Counts from the first block on, until `wanted` bytes are found.
Blocks FindBlocks(int fd, uint64_t begin, uint64_t end, uint64_t wanted,
                  uint64_t* stop) {
  Blocks blocks{end, 0};
  uint64_t at = begin;
  while (at < end && blocks.bytes < wanted) {
    const off_t data = ::lseek(fd, static_cast<off_t>(at), SEEK_DATA);
    if (data < 0) {
      if (errno == ENXIO) break;  // a hole up to the end
      *stop = end;                // cannot be asked here: all may be blocks
      return {begin, end - begin};
    }
    const auto first = static_cast<uint64_t>(data);
    if (first >= end) break;
    const off_t hole = ::lseek(fd, data, SEEK_HOLE);
    const uint64_t last =
        hole < 0 ? end : std::min(static_cast<uint64_t>(hole), end);
    if (blocks.bytes == 0) blocks.begin = first;
    const uint64_t taken = std::min(last - first, wanted - blocks.bytes);
    blocks.bytes += taken;
    at = first + taken;
  }
  *stop = at;
  return blocks;
}

}  // namespace

Result<std::unique_ptr<SlabEvictor>> SlabEvictor::Open(
    CacheFolder& folder, CacheDisk& disk, const std::string& path) {
  ASSIGN_OR_RETURN(const ContentId id, IdOfPath(path));
  ASSIGN_OR_RETURN(UniqueFd data, OpenFile(folder, path + "/data"));
  ASSIGN_OR_RETURN(const UniqueFd meta_fd, OpenFile(folder, path + "/meta"));
  struct stat status {};
  if (::fstat(data.get(), &status) != 0) return DiskError(errno, path);
  const auto size = static_cast<uint64_t>(status.st_size);
  if (!S_ISREG(status.st_mode) || size > kMaxObjectSize) {
    return MakeError(Code::kCorrupt, "{}/data: not an object's", path);
  }
  ASSIGN_OR_RETURN(auto meta,
                   MetaFile::Open(meta_fd.get(), id, size, path + "/meta"));
  return std::unique_ptr<SlabEvictor>(
      new SlabEvictor(folder, disk, path, std::move(data), std::move(meta)));
}

Result<uint64_t> SlabEvictor::Evict(uint64_t slab, uint64_t wanted) {
  const uint64_t start = slab * kSlabSize;
  const uint64_t end = std::min(start + kSlabSize, meta_->layout().object_size);
  const ExclusiveLock lock(data_.get(), start, kSlabSize);
  if (lock.result() == -EAGAIN) {
    return MakeError(Code::kStale, "{}: slab {} is pinned", path_, slab);
  }
  if (lock.result() < 0) return DiskError(-lock.result(), path_);

  uint64_t stop = end;
  const Blocks blocks = FindBlocks(data_.get(), start, end, wanted, &stop);
  if (blocks.bytes == 0) return 0;
  // Whole granules; entries of holes before the first block go as well.
  const uint64_t last = (stop + kGranuleSize - 1) / kGranuleSize;
  meta_->SetVerified(false);
  meta_->Unseal();
  meta_->StartGeneration(slab);
  for (uint64_t g = slab * kGranulesPerSlab;
       g < std::min(last, meta_->layout().granules); ++g) {
    meta_->Publish(g, 0);
  }
  // Else a write-back of `meta` that fails could bring old entries back.
  const int synced = meta_->Sync(disk_, slab);
  if (synced < 0) return DiskError(-synced, path_ + "/meta");
  if (meta_->faulted()) {
    return MakeError(Code::kIo, "{}/meta: cannot be written", path_);
  }
  const uint64_t from = blocks.begin / kGranuleSize * kGranuleSize;
  const int punched =
      disk_.Punch(data_.get(), from,
                  std::min(last * kGranuleSize, start + kSlabSize) - from);
  if (punched < 0) return DiskError(-punched, path_ + "/data");
  return blocks.bytes;
}

void SlabEvictor::Demote() {
  if (path_.starts_with(kObjectsFolder) || meta_->verified()) return;
  DemoteObject(folder_, path_, meta_->owner());
}

bool DemoteObject(CacheFolder& folder, const std::string& path,
                  uint64_t owner) {
  const std::string claimed = ClaimedPath(owner, path);
  if (!folder.MakeFolders(claimed.substr(0, claimed.rfind('/'))).has_value()) {
    return false;
  }
  const auto rename = [&] {
    return ::renameat(folder.fd(), path.c_str(), folder.fd(),
                      claimed.c_str()) == 0;
  };
  if (rename()) return true;
  // An older copy is there. Used by somebody: then ours stays, and whoever
  // opens it sees that it is not verified.
  return (errno == EEXIST || errno == ENOTEMPTY) &&
         RemoveUnusedObject(folder, claimed) && rename();
}

bool RemoveUnusedObject(CacheFolder& folder, const std::string& path) {
  auto data = OpenFile(folder, path + "/data");
  if (!data.has_value()) return false;
  const ExclusiveLock alone(data->get(), kPresenceByte, 1);
  if (alone.result() != 0) return false;
  // The folder may be another one by now.
  struct stat opened {};
  struct stat named {};
  if (::fstat(data->get(), &opened) != 0 ||
      ::fstatat(folder.fd(), (path + "/data").c_str(), &named,
                AT_SYMLINK_NOFOLLOW) != 0 ||
      opened.st_ino != named.st_ino) {
    return false;
  }
  const std::string temp = folder.TempPath();
  if (::renameat(folder.fd(), path.c_str(), folder.fd(), temp.c_str()) != 0) {
    return false;
  }
  folder.Remove(temp);
  return true;
}

}  // namespace weightfs
