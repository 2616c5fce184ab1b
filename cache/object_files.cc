#include "cache/object_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <thread>

#include "cache/cache_paths.h"
#include "cache/slab_evictor.h"
#include "cache/slab_locks.h"
#include "formats/base/log.h"

namespace weightfs {
namespace {

// Each try that fails means that another process changed the folder meanwhile.
constexpr int kTries = 16;
// Who removes it has it locked, and may be without a processor just then.
constexpr int kMostPauses = 200;
constexpr std::chrono::milliseconds kPause{1};

// What a new object's folders may take on the disk, `meta` aside.
constexpr uint64_t kFolderBytes = uint64_t{16} * 1024;

bool SameInode(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

// One opening of one object.
class Opener {
 public:
  Opener(const ObjectToOpen& object, const std::string& path)
      : object_(object),
        folder_(object.folder),
        disk_(object.disk),
        path_(path),
        what_(fmt::format("{}/{}", object.folder.path(), path)),
        id_(object.id),
        size_(object.size) {}

  Result<ObjectFiles> Run();
  Result<ObjectFiles> RunVerified();
  Result<ObjectFiles> RunExisting();
  Result<> SetAsideDamaged();

 private:
  // kNotFound: no such folder.
  Result<UniqueFd> OpenFolder() const;
  // kCorrupt: not an object that can be used. kStale: it is being removed.
  Result<ObjectFiles> OpenFiles(int object_fd) const;
  Result<UniqueFd> OpenFile(int object_fd, const char* name) const;
  Result<> LockPresence(int data) const;
  Result<> Make();
  Result<> MakeFiles(const std::string& temp) const;
  Result<UniqueFd> CreateFile(const std::string& relative) const;
  Result<> SetAside(int object_fd);
  void RemoveOlderBad(const std::string& kept) const;

  const ObjectToOpen& object_;
  CacheFolder& folder_;
  CacheDisk& disk_;
  const std::string path_;
  const std::string what_;
  const ContentId& id_;
  const uint64_t size_;
};

Result<ObjectFiles> Opener::Run() {
  int pauses = 0;
  for (int i = 0; i < kTries; ++i) {
    auto object_fd = OpenFolder();
    if (!object_fd.has_value()) {
      if (object_fd.error().code() != Code::kNotFound) {
        return std::move(object_fd).error();
      }
      RETURN_IF_ERROR(Make());
      continue;
    }
    auto files = OpenFiles(object_fd->get());
    if (files.has_value() && files->meta->owner() != object_.owner) {
      // Nobody would ever trust what it holds.
      files = Error(Code::kCorrupt, "meta: the owner is another namespace");
    }
    if (files.has_value()) return files;
    if (files.error().code() == Code::kStale) {
      if (pauses++ < kMostPauses) {
        std::this_thread::sleep_for(kPause);
        --i;  // it is not changed yet
      }
      continue;
    }
    if (files.error().code() != Code::kCorrupt) return files;
    LogWarning("a cached object is set aside path={} why={}", what_,
               files.error().message());
    RETURN_IF_ERROR(SetAside(object_fd->get()));
  }
  return MakeError(Code::kIo, "{}: other processes keep changing it", what_);
}

Result<ObjectFiles> Opener::RunVerified() {
  ASSIGN_OR_RETURN(const UniqueFd object_fd, OpenFolder());
  auto files = OpenFiles(object_fd.get());
  if (files.has_value() && files->meta->verified()) return files;
  if (files.has_value()) {
    // Bytes of it were lost; whoever saw that could not move it.
    DemoteObject(folder_, path_, files->meta->owner());
  } else if (files.error().code() == Code::kCorrupt) {
    LogWarning("a cached object is set aside path={} why={}", what_,
               files.error().message());
    RETURN_IF_ERROR(SetAside(object_fd.get()));
  }
  return Error(Code::kNotFound, what_);
}

Result<ObjectFiles> Opener::RunExisting() {
  ASSIGN_OR_RETURN(const UniqueFd object_fd, OpenFolder());
  auto files = OpenFiles(object_fd.get());
  if (!files.has_value() && files.error().code() == Code::kStale) {
    return Error(Code::kNotFound, what_);
  }
  return files;
}

Result<> Opener::SetAsideDamaged() {
  ASSIGN_OR_RETURN(const UniqueFd object_fd, OpenFolder());
  const auto files = OpenFiles(object_fd.get());
  if (files.has_value() || files.error().code() != Code::kCorrupt) return {};
  return SetAside(object_fd.get());
}

// With the lock, nobody removes the folder; without it, somebody does now.
Result<> Opener::LockPresence(int data) const {
  const int locked = SetOfdLock(data, F_RDLCK, kPresenceByte, 1);
  if (locked == -EAGAIN) return Error(Code::kStale, what_);
  if (locked < 0) return DiskError(-locked, what_);
  struct stat status {};
  if (::fstat(data, &status) != 0) return DiskError(errno, what_);
  if (status.st_nlink == 0) return Error(Code::kStale, what_);
  return {};
}

Result<UniqueFd> Opener::OpenFolder() const {
  UniqueFd fd(
      ::openat(folder_.fd(), path_.c_str(), O_PATH | O_CLOEXEC | O_NOFOLLOW));
  if (fd.valid()) return fd;
  const int error = errno;
  if (error == ENOENT) return Error(Code::kNotFound, what_);
  return DiskError(error, what_);
}

Result<UniqueFd> Opener::OpenFile(int object_fd, const char* name) const {
  UniqueFd fd(
      ::openat(object_fd, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (fd.valid()) return fd;
  const int error = errno;
  // ENOTDIR: the object's folder is not one.
  if (error == ENOENT || error == ELOOP || error == EISDIR || error == ENXIO ||
      error == ENOTDIR) {
    return MakeError(Code::kCorrupt, "no file {}", name);
  }
  return DiskError(error, fmt::format("{}/{}", what_, name));
}

Result<ObjectFiles> Opener::OpenFiles(int object_fd) const {
  ObjectFiles files;
  ASSIGN_OR_RETURN(files.data, OpenFile(object_fd, "data"));
  struct stat status {};
  if (::fstat(files.data.get(), &status) != 0) return DiskError(errno, what_);
  if (!S_ISREG(status.st_mode) ||
      static_cast<uint64_t>(status.st_size) != size_) {
    return MakeError(Code::kCorrupt, "data: {} bytes, not {}", status.st_size,
                     size_);
  }
  RETURN_IF_ERROR(LockPresence(files.data.get()));
  files.claims = UniqueFd(::openat(
      object_fd, "claims", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  ASSIGN_OR_RETURN(const UniqueFd meta, OpenFile(object_fd, "meta"));
  ASSIGN_OR_RETURN(files.meta,
                   MetaFile::Open(meta.get(), id_, size_, what_ + "/meta"));
  return files;
}

Result<> Opener::Make() {
  if (!object_.space.Take(MetaLayout::For(size_).file_size + kFolderBytes)) {
    return MakeError(Code::kNoSpace, "{}: the cache is full", what_);
  }
  RETURN_IF_ERROR(folder_.MakeFolders(kTempFolder));
  const std::string temp = folder_.TempPath();
  Result<> result = MakeFiles(temp);
  if (result.has_value()) {
    result = folder_.MakeFolders(
        std::string_view(path_).substr(0, path_.rfind('/')));
  }
  if (!result.has_value()) {
    folder_.Remove(temp);
    return result;
  }
  if (::renameat(folder_.fd(), temp.c_str(), folder_.fd(), path_.c_str()) ==
      0) {
    return {};
  }
  const int error = errno;
  folder_.Remove(temp);
  // Somebody was faster (a folder is never renamed over one that is not empty),
  // or removed something on the way: look again.
  if (error == EEXIST || error == ENOTEMPTY || error == ENOENT) return {};
  return DiskError(error, what_);
}

Result<> Opener::MakeFiles(const std::string& temp) const {
  if (::mkdirat(folder_.fd(), temp.c_str(), 0700) != 0) {
    return DiskError(errno, what_);
  }
  ASSIGN_OR_RETURN(const UniqueFd data, CreateFile(temp + "/data"));
  if (::ftruncate(data.get(), static_cast<off_t>(size_)) != 0) {
    return DiskError(errno, what_ + "/data");
  }
  const std::string meta_name = what_ + "/meta";
  ASSIGN_OR_RETURN(const UniqueFd meta, CreateFile(temp + "/meta"));
  // All its blocks now: a store into the mapping cannot find the disk full.
  const int allocated =
      disk_.Allocate(meta.get(), 0, MetaLayout::For(size_).file_size);
  if (allocated != 0) return DiskError(-allocated, meta_name);
  const auto header = EncodeMetaHeader(id_, size_, object_.owner);
  return WriteFully(disk_, meta.get(), header, 0, meta_name);
}

Result<UniqueFd> Opener::CreateFile(const std::string& relative) const {
  UniqueFd fd(::openat(folder_.fd(), relative.c_str(),
                       O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW,
                       0600));
  if (!fd.valid()) return DiskError(errno, what_);
  return fd;
}

Result<> Opener::SetAside(int object_fd) {
  struct stat bad {};
  if (::fstat(object_fd, &bad) != 0) return DiskError(errno, what_);
  const std::string unique = folder_.TempPath();
  const std::string aside =
      fmt::format("{}.bad-{}", path_, unique.substr(unique.rfind('/') + 1));
  if (::renameat(folder_.fd(), path_.c_str(), folder_.fd(), aside.c_str()) !=
      0) {
    const int error = errno;
    if (error == ENOENT) return {};  // another process did it
    return DiskError(error, what_);
  }
  struct stat moved {};
  if (::fstatat(folder_.fd(), aside.c_str(), &moved, AT_SYMLINK_NOFOLLOW) ==
          0 &&
      !SameInode(bad, moved)) {
    // Another process set the bad one aside and made this one: put it back,
    // unless a third has made one meanwhile.
    ::renameat(folder_.fd(), aside.c_str(), folder_.fd(), path_.c_str());
    return {};
  }
  RemoveOlderBad(aside);
  return {};
}

void Opener::RemoveOlderBad(const std::string& kept) const {
  const size_t slash = path_.rfind('/');
  const std::string prefix = path_.substr(slash + 1) + ".bad-";
  for (const std::string& name : folder_.Names(path_.substr(0, slash))) {
    const std::string relative =
        fmt::format("{}/{}", path_.substr(0, slash), name);
    if (name.starts_with(prefix) && relative != kept) folder_.Remove(relative);
  }
}

}  // namespace

Result<ObjectFiles> OpenObjectFiles(const ObjectToOpen& object,
                                    const std::string& path) {
  return Opener(object, path).Run();
}

Result<ObjectFiles> OpenVerifiedFiles(const ObjectToOpen& object) {
  return Opener(object, VerifiedPath(object.id)).RunVerified();
}

Result<ObjectFiles> OpenExistingFiles(const ObjectToOpen& object,
                                      const std::string& path) {
  return Opener(object, path).RunExisting();
}

Result<> SetAsideDamaged(const ObjectToOpen& object, const std::string& path) {
  return Opener(object, path).SetAsideDamaged();
}

}  // namespace weightfs
