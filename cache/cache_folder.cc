#include "cache/cache_folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <ctime>
#include <span>

#include "cache/cache_disk.h"
#include "cache/cache_paths.h"
#include "cache/lock_probe.h"
#include "formats/base/log.h"

namespace weightfs {
namespace {

constexpr std::string_view kTagFile = "CACHEDIR.TAG";
constexpr std::string_view kTag =
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# This folder is a cache made by weightfs; it may be removed.\n"
    "# See https://bford.info/cachedir/\n";
constexpr std::string_view kVersionFile = "version";
constexpr std::string_view kVersionPrefix = "weightfs cache ";
constexpr time_t kLeftoverAge = 3600;  // seconds

uint64_t RandomNumber() {
  uint64_t value = 0;
  if (::getrandom(&value, sizeof(value), GRND_NONBLOCK) != sizeof(value)) {
    struct timespec now {};
    ::clock_gettime(CLOCK_REALTIME, &now);
    value = static_cast<uint64_t>(now.tv_nsec) ^
            (static_cast<uint64_t>(::getpid()) << 32);
  }
  return value;
}

// The folders above a user's cache folder, as the XDG rules want them.
Result<> MakeParents(const std::string& path) {
  for (size_t end = path.find('/', 1); end != std::string::npos;
       end = path.find('/', end + 1)) {
    const std::string parent = path.substr(0, end);
    if (::mkdir(parent.c_str(), 0700) != 0 && errno != EEXIST) {
      // What is missing after this is told by the last mkdir.
      if (errno == ENOSPC || errno == EROFS) return DiskError(errno, parent);
    }
  }
  return {};
}

Result<UniqueFd> OpenTop(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) {
    const int error = errno;
    const std::string what = "cache folder " + path;
    if (error == EACCES) {
      return MakeError(Code::kDenied, "{}: permission denied", what);
    }
    if (error == ENOTDIR) {
      return MakeError(Code::kInvalid, "{}: not a folder", what);
    }
    return DiskError(error, what);
  }
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return DiskError(errno, path);
  if (status.st_uid != ::geteuid()) {
    return MakeError(Code::kDenied,
                     "cache folder {} belongs to uid {}, not to {}; a cache "
                     "has one user",
                     path, status.st_uid, ::geteuid());
  }
  if ((status.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return MakeError(Code::kDenied,
                     "others may write to the cache folder {} (mode {:04o}), "
                     "so its bytes cannot be trusted; chmod 700 it",
                     path, status.st_mode & 07777);
  }
  return fd;
}

struct DirCloser {
  void operator()(DIR* dir) const { ::closedir(dir); }
};

}  // namespace

Result<std::unique_ptr<CacheFolder>> CacheFolder::Open(
    const std::string& path) {
  if (path.empty()) return Error(Code::kInvalid, "no cache folder given");
  RETURN_IF_ERROR(MakeParents(path));
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    const int error = errno;
    if (error == EACCES) {
      return MakeError(Code::kDenied, "cache folder {}: permission denied",
                       path);
    }
    return DiskError(error, "cache folder " + path);
  }
  ASSIGN_OR_RETURN(auto folder, OpenPlain(path));
  RETURN_IF_ERROR(folder->Prepare());
  return folder;
}

Result<std::unique_ptr<CacheFolder>> CacheFolder::OpenPlain(
    const std::string& path) {
  ASSIGN_OR_RETURN(UniqueFd fd, OpenTop(path));
  return std::unique_ptr<CacheFolder>(new CacheFolder(path, std::move(fd)));
}

std::string CacheFolder::TempPath() {
  return fmt::format("{}/{}-{}-{:016x}", kTempFolder, ::getpid(),
                     temp_names_.fetch_add(1), RandomNumber());
}

Result<> CacheFolder::MakeFolders(std::string_view relative) const {
  for (size_t end = 0; end != std::string_view::npos;) {
    end = relative.find('/', end + 1);
    const std::string part(relative.substr(0, end));
    if (::mkdirat(fd(), part.c_str(), 0700) != 0 && errno != EEXIST) {
      return DiskError(errno, fmt::format("{}/{}", path_, part));
    }
  }
  return {};
}

std::vector<std::string> CacheFolder::Names(const std::string& relative) const {
  std::vector<std::string> names;
  UniqueFd opened(::openat(fd(), relative.c_str(),
                           O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
  if (!opened.valid()) return names;
  const std::unique_ptr<DIR, DirCloser> dir(::fdopendir(opened.get()));
  if (dir == nullptr) return names;
  static_cast<void>(opened.Release());  // closedir closes it
  while (const dirent* entry = ::readdir(dir.get())) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  return names;
}

void CacheFolder::Remove(const std::string& relative) const {
  if (::unlinkat(fd(), relative.c_str(), 0) == 0 || errno == ENOENT) return;
  for (const std::string& name : Names(relative)) {
    const std::string inner = fmt::format("{}/{}", relative, name);
    ::unlinkat(fd(), inner.c_str(), 0);
  }
  if (::unlinkat(fd(), relative.c_str(), AT_REMOVEDIR) != 0 &&
      errno != ENOENT) {
    LogWarning("cannot remove a cache file path={}/{} errno={}", path_,
               relative, errno);
  }
}

Result<std::string> CacheFolder::ReadFile(const std::string& relative,
                                          uint64_t limit) const {
  const std::string what = fmt::format("{}/{}", path_, relative);
  UniqueFd file(::openat(fd(), relative.c_str(),
                         O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!file.valid()) {
    const int error = errno;
    if (error == ENOENT || error == ENOTDIR) {
      return MakeError(Code::kNotFound, "{} does not exist", what);
    }
    return DiskError(error, what);
  }
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) return DiskError(errno, what);
  const auto size = static_cast<uint64_t>(status.st_size);
  if (!S_ISREG(status.st_mode) || size > limit) {
    return MakeError(Code::kCorrupt, "{}: not a file of at most {} bytes", what,
                     limit);
  }
  std::string text(size, '\0');
  for (size_t done = 0; done < text.size();) {
    const ssize_t got = CacheDisk::System().Read(
        file.get(), std::as_writable_bytes(std::span(text)).subspan(done),
        done);
    if (got < 0) return DiskError(static_cast<int>(-got), what);
    if (got == 0) return MakeError(Code::kCorrupt, "{}: shrank", what);
    done += static_cast<size_t>(got);
  }
  return text;
}

Result<> CacheFolder::WriteFile(const std::string& relative,
                                std::string_view text) {
  const std::string what = fmt::format("{}/{}", path_, relative);
  RETURN_IF_ERROR(MakeFolders(kTempFolder));
  const std::string temp = TempPath();
  UniqueFd file(::openat(fd(), temp.c_str(),
                         O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW,
                         0600));
  if (!file.valid()) return DiskError(errno, what);
  CacheDisk& disk = CacheDisk::System();
  Result<> result =
      WriteFully(disk, file.get(), std::as_bytes(std::span(text)), 0, what);
  if (result.has_value()) {
    const int synced = disk.Sync(file.get());
    if (synced != 0) result = DiskError(-synced, what);
  }
  const size_t slash = relative.rfind('/');
  if (result.has_value() && slash != std::string::npos) {
    result = MakeFolders(std::string_view(relative).substr(0, slash));
  }
  if (result.has_value() &&
      ::renameat(fd(), temp.c_str(), fd(), relative.c_str()) != 0) {
    result = DiskError(errno, what);
  }
  if (!result.has_value()) ::unlinkat(fd(), temp.c_str(), 0);
  return result;
}

Result<> CacheFolder::Prepare() {
  RETURN_IF_ERROR(CheckVersion());
  RETURN_IF_ERROR(MakeFolders(kTempFolder));
  RETURN_IF_ERROR(MakeFolders(kObjectsFolder));
  const std::string tag(kTagFile);
  if (::faccessat(fd(), tag.c_str(), F_OK, 0) != 0) {
    RETURN_IF_ERROR(WriteFile(tag, kTag));
  }
  RemoveLeftovers();
  auto probe = ProbeLocks(fd(), TempPath());
  if (probe.has_value()) return {};
  return std::move(probe).error().AddContext("cache folder " + path_);
}

Result<> CacheFolder::CheckVersion() {
  const std::string file(kVersionFile);
  auto text = ReadFile(file, 4096);
  if (!text.has_value() && text.error().code() != Code::kNotFound) {
    return std::move(text).error();
  }
  // Empty or zeros: the machine stopped before the file was on the disk.
  if (!text.has_value() || text->find_first_not_of('\0') == std::string::npos) {
    return WriteFile(file,
                     fmt::format("{}{}\n", kVersionPrefix, kCacheVersion));
  }
  unsigned version = 0;
  if (text->starts_with(kVersionPrefix)) {
    std::from_chars(text->data() + kVersionPrefix.size(),
                    text->data() + text->size(), version);
  }
  if (version == kCacheVersion) return {};
  return MakeError(Code::kUnsupported,
                   "cache folder {} was made by another version of weightfs "
                   "(its file `version` does not say \"{}{}\"); choose another "
                   "folder or remove it",
                   path_, kVersionPrefix, kCacheVersion);
}

void CacheFolder::RemoveLeftovers() const {
  const std::string temp(kTempFolder);
  const time_t now = ::time(nullptr);
  for (const std::string& name : Names(temp)) {
    const std::string relative = fmt::format("{}/{}", temp, name);
    struct stat status {};
    // Younger ones may be in the making, by another process.
    if (::fstatat(fd(), relative.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0 &&
        now - status.st_mtim.tv_sec > kLeftoverAge) {
      Remove(relative);
    }
  }
}

}  // namespace weightfs
