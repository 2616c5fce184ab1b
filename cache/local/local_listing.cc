#include "cache/local/local_listing.h"

#include <dirent.h>
#include <fcntl.h>
#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <utility>
#include <vector>

#include "formats/base/log.h"

namespace weightfs {
namespace {

struct DirCloser {
  void operator()(DIR* dir) const { ::closedir(dir); }
};
using Dir = std::unique_ptr<DIR, DirCloser>;

// A folder that is being read: descriptors stay few, since only the folders on
// the way down are open.
struct Level {
  Dir dir;
  std::string prefix;  // "" or "folder/"
};

// Whether every user of the machine may read it.
bool IsForAll(const struct stat& st) {
  const mode_t needed = S_IROTH | (S_ISDIR(st.st_mode) ? S_IXOTH : 0);
  return (st.st_mode & needed) == needed;
}

class Walker {
 public:
  Walker(int root, Snapshot& snapshot, std::set<std::string>& links)
      : root_(root), snapshot_(snapshot), links_(links) {}

  Result<> Walk() {
    RETURN_IF_ERROR(Enter(root_, ".", ""));
    while (!levels_.empty()) {
      errno = 0;
      // NOLINTNEXTLINE(concurrency-mt-unsafe): the stream is ours alone
      const dirent* entry = ::readdir(levels_.back().dir.get());
      if (entry != nullptr) {
        Visit(entry->d_name);
        continue;
      }
      if (errno != 0) Skip(levels_.back().prefix, errno);
      levels_.pop_back();
    }
    return {};
  }

 private:
  Result<> Enter(int parent, const char* name, const std::string& prefix) {
    UniqueFd fd(::openat(parent, name,
                         O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!fd.valid()) return ErrnoError(errno, prefix);
    Dir dir(::fdopendir(fd.get()));
    if (!dir) return ErrnoError(errno, prefix);
    (void)fd.Release();  // the stream owns it
    levels_.push_back({std::move(dir), prefix});
    return {};
  }

  static void Skip(const std::string& path, int error) {
    LogWarning("left out of the listing path={} error={}", path,
               std::generic_category().message(error));
  }

  void Visit(const std::string& name) {
    if (name == "." || name == "..") return;
    const int parent = ::dirfd(levels_.back().dir.get());
    const std::string path = levels_.back().prefix + name;
    struct stat st {};
    if (::fstatat(parent, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) {
      if (errno != ENOENT) Skip(path, errno);
      return;
    }
    const bool link = S_ISLNK(st.st_mode);
    if (link && ::fstatat(parent, name.c_str(), &st, 0) != 0) {
      LogDebug("left out: a link that leads nowhere path={}", path);
      return;
    }
    if (S_ISREG(st.st_mode)) {
      snapshot_.files.push_back(
          {path, static_cast<uint64_t>(st.st_size), StatId(st)});
      if (!IsForAll(st)) snapshot_.restricted = true;
      if (link) links_.insert(path);
    } else if (S_ISDIR(st.st_mode) && !link && name != ".git") {
      if (!IsForAll(st)) snapshot_.restricted = true;
      auto entered = Enter(parent, name.c_str(), path + "/");
      if (!entered.has_value()) {
        LogWarning("left out of the listing error={}",
                   entered.error().message());
      }
    }
  }

  const int root_;
  Snapshot& snapshot_;
  std::set<std::string>& links_;
  std::vector<Level> levels_;
};

// 40 hex digits over the sorted list: SHA-256, cut.
std::string HashListing(const std::vector<FileInfo>& files) {
  std::string text;
  for (const FileInfo& file : files) {
    text.append(file.path).push_back('\0');
    text.append(file.id.value).push_back('\0');
  }
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned size = 0;
  EVP_Digest(text.data(), text.size(), digest.data(), &size, EVP_sha256(),
             nullptr);
  std::string hex;
  for (size_t i = 0; i < 20; ++i) hex += fmt::format("{:02x}", digest.at(i));
  return hex;
}

Result<std::string> AbsolutePath(const std::string& path) {
  // NOLINTNEXTLINE(cppcoreguidelines-no-malloc): realpath allocates
  const std::unique_ptr<char, decltype(&std::free)> real(
      ::realpath(path.c_str(), nullptr), &std::free);
  if (!real) return ErrnoError(errno, path);
  return std::string(real.get());
}

// The folder and name of one file; a symlink keeps its own name.
std::pair<std::string, std::string> Split(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return {".", path};
  return {slash == 0 ? "/" : path.substr(0, slash), path.substr(slash + 1)};
}

Result<> ListFile(const std::string& path, const struct stat& st,
                  Snapshot& snapshot, LocalListing& listing) {
  const auto [folder, name] = Split(path);
  if (!IsSafePath(name)) {
    return MakeError(Code::kInvalid, "{}: not a file's path", path);
  }
  ASSIGN_OR_RETURN(const std::string parent, AbsolutePath(folder));
  snapshot.repo = parent + (parent.ends_with('/') ? "" : "/") + name;
  snapshot.files.push_back(
      {name, static_cast<uint64_t>(st.st_size), StatId(st)});
  snapshot.restricted = !IsForAll(st);
  struct stat itself {};
  if (::lstat(path.c_str(), &itself) != 0) return ErrnoError(errno, path);
  if (S_ISLNK(itself.st_mode)) listing.links.insert(name);
  listing.root =
      UniqueFd(::open(parent.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!listing.root.valid()) return ErrnoError(errno, parent);
  return {};
}

Result<> ListFolder(const std::string& path, Snapshot& snapshot,
                    LocalListing& listing) {
  ASSIGN_OR_RETURN(snapshot.repo, AbsolutePath(path));
  listing.root =
      UniqueFd(::open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!listing.root.valid()) return ErrnoError(errno, path);
  Walker walker(listing.root.get(), snapshot, listing.links);
  auto walked = walker.Walk();
  if (!walked.has_value()) {
    return std::move(walked).error().AddContext(path);
  }
  std::sort(
      snapshot.files.begin(), snapshot.files.end(),
      [](const FileInfo& a, const FileInfo& b) { return a.path < b.path; });
  return {};
}

}  // namespace

ContentId StatId(const struct stat& st) {
  auto nanoseconds = [](const timespec& t) {
    return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
  };
  return {ContentId::Kind::kStat,
          fmt::format("{:x}:{:x}:{}:{}:{}", st.st_dev, st.st_ino, st.st_size,
                      nanoseconds(st.st_mtim), nanoseconds(st.st_ctim))};
}

Code CodeOfErrno(int error) {
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return Code::kNotFound;
    case EACCES:
    case EPERM:
      return Code::kDenied;
    case ELOOP:
    case ENAMETOOLONG:
      return Code::kInvalid;
    case EMFILE:
    case ENFILE:
    case ENOMEM:
      return Code::kUnavailable;
    default:
      return Code::kIo;
  }
}

Error ErrnoError(int error, const std::string& path) {
  return MakeError(CodeOfErrno(error), "{}: {}", path,
                   std::generic_category().message(error));
}

Result<LocalListing> ListLocal(const std::string& path) {
  struct stat st {};
  if (::stat(path.c_str(), &st) != 0) return ErrnoError(errno, path);
  auto snapshot = std::make_shared<Snapshot>();
  LocalListing listing;
  if (S_ISDIR(st.st_mode)) {
    RETURN_IF_ERROR(ListFolder(path, *snapshot, listing));
  } else if (S_ISREG(st.st_mode)) {
    RETURN_IF_ERROR(ListFile(path, st, *snapshot, listing));
  } else {
    return MakeError(Code::kInvalid, "{}: neither a folder nor a regular file",
                     path);
  }
  snapshot->commit = HashListing(snapshot->files);
  listing.snapshot = std::move(snapshot);
  return listing;
}

}  // namespace weightfs
