#include "cache/local/local_origin.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <list>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cache/local/local_listing.h"
#include "formats/base/checked.h"
#include "formats/base/mutex.h"
#include "formats/base/unique_fd.h"
#include "formats/base/worker_pool.h"

namespace weightfs {
namespace {

constexpr size_t kThreads = 4;
constexpr size_t kOpenFiles = 64;     // kept open, of those last used
constexpr uint64_t kPiece = 1 << 20;  // bytes of one pread

Error Changed(const std::string& path, std::string_view how) {
  return MakeError(Code::kStale,
                   "{}: changed since it was mounted ({}); mount again", path,
                   how);
}

// The files that were read last, open. Thread-safe; opens without its lock.
class OpenFiles {
 public:
  OpenFiles(int root, const std::set<std::string>& links)
      : root_(root), links_(links) {}

  Result<std::shared_ptr<const UniqueFd>> Open(const std::string& path)
      EXCLUDES(mutex_) {
    {
      MutexLock lock(mutex_);
      if (auto it = by_path_.find(path); it != by_path_.end()) {
        recent_.splice(recent_.begin(), recent_, it->second);
        return it->second->second;
      }
    }
    // O_NONBLOCK: a FIFO put in the file's place must not hold us up.
    const int follow = links_.contains(path) ? 0 : O_NOFOLLOW;
    auto fd = std::make_shared<const UniqueFd>(
        ::openat(root_, path.c_str(),
                 O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | follow));
    if (!fd->valid()) return OpenError(errno, path);
    std::shared_ptr<const UniqueFd> evicted;  // closed without the lock
    MutexLock lock(mutex_);
    if (by_path_.contains(path)) return fd;
    recent_.emplace_front(path, fd);
    by_path_[path] = recent_.begin();
    if (recent_.size() > kOpenFiles) {
      by_path_.erase(recent_.back().first);
      evicted = std::move(recent_.back().second);
      recent_.pop_back();
    }
    return fd;
  }

  void Forget(const std::string& path) EXCLUDES(mutex_) {
    std::shared_ptr<const UniqueFd> forgotten;
    MutexLock lock(mutex_);
    auto it = by_path_.find(path);
    if (it == by_path_.end()) return;
    forgotten = std::move(it->second->second);
    recent_.erase(it->second);
    by_path_.erase(it);
  }

 private:
  using Recent =
      std::list<std::pair<std::string, std::shared_ptr<const UniqueFd>>>;

  static Error OpenError(int error, const std::string& path) {
    switch (error) {
      case ENOENT:
      case ENOTDIR:
        return Changed(path, "it is gone");
      case ELOOP:
      case ENXIO:  // a FIFO or socket
        return Changed(path, "it is another kind of file");
      default:
        return ErrnoError(error, path);
    }
  }

  const int root_;
  const std::set<std::string>& links_;
  Mutex mutex_;
  Recent recent_ GUARDED_BY(mutex_);
  std::unordered_map<std::string, Recent::iterator> by_path_ GUARDED_BY(mutex_);
};

class LocalOrigin final : public Origin {
 public:
  explicit LocalOrigin(LocalListing listing)
      : listing_(std::move(listing)),
        files_(listing_.root.get(), listing_.links),
        pool_("wfs-local", kThreads) {}

  // Running fetches end after their current piece; a file system that hangs
  // holds this up, since a thread in it cannot be ended.
  ~LocalOrigin() override {
    MutexLock lock(mutex_);
    for (auto& [id, cancelled] : fetches_) *cancelled = true;
    while (!fetches_.empty()) ended_.Wait(mutex_);
  }
  LocalOrigin(const LocalOrigin&) = delete;
  LocalOrigin& operator=(const LocalOrigin&) = delete;

  const std::string& name() const override { return listing_.snapshot->repo; }
  const std::string& cache_namespace() const override { return no_namespace_; }
  Result<std::shared_ptr<const Snapshot>> List() override {
    return listing_.snapshot;
  }

  FetchId StartFetch(const FileInfo& file, uint64_t offset, uint64_t length,
                     std::shared_ptr<FetchSink> sink) override {
    auto cancelled = std::make_shared<std::atomic<bool>>(false);
    FetchId id = 0;
    {
      MutexLock lock(mutex_);
      id = ++last_id_;
      fetches_.emplace(id, cancelled);
    }
    pool_.Submit([this, id, file, offset, length, sink = std::move(sink),
                  cancelled = std::move(cancelled)] {
      sink->OnDone(Fetch(file, offset, length, *sink, *cancelled));
      MutexLock lock(mutex_);
      fetches_.erase(id);
      ended_.NotifyAll();
    });
    return id;
  }

  void CancelFetch(FetchId id) override {
    MutexLock lock(mutex_);
    if (auto it = fetches_.find(id); it != fetches_.end()) *it->second = true;
  }

 private:
  Result<> Fetch(const FileInfo& file, uint64_t offset, uint64_t length,
                 FetchSink& sink, const std::atomic<bool>& cancelled) {
    const Error stopped = MakeError(Code::kCancelled, "{} bytes {}-{}: stopped",
                                    file.path, offset, offset + length - 1);
    if (cancelled) return stopped;
    if (length == 0 || !RangeFits(offset, length, file.size)) {
      return MakeError(Code::kInvalid, "{}: no {} bytes at {} in its {}",
                       file.path, length, offset, file.size);
    }
    ASSIGN_OR_RETURN(const auto fd, files_.Open(file.path));
    std::vector<std::byte> buffer(std::min(length, kPiece));
    for (uint64_t end = offset + length; offset < end;) {
      if (cancelled) return stopped;
      const std::span<std::byte> piece(
          buffer.data(), std::min<uint64_t>(buffer.size(), end - offset));
      Result<> read = ReadPiece(file, fd->get(), offset, piece);
      if (!read.has_value()) {
        files_.Forget(file.path);
        return read;
      }
      if (!sink.OnData(piece)) return stopped;
      offset += piece.size();
    }
    return {};
  }

  // The bytes are handed out only if the file was the listed one before and
  // after they were read.
  static Result<> ReadPiece(const FileInfo& file, int fd, uint64_t offset,
                            std::span<std::byte> out) {
    RETURN_IF_ERROR(Check(file, fd));
    for (size_t done = 0; done < out.size();) {
      const ssize_t n = ::pread(fd, out.data() + done, out.size() - done,
                                static_cast<off_t>(offset + done));
      if (n == 0) return Changed(file.path, "it is shorter");
      if (n > 0) {
        done += static_cast<size_t>(n);
      } else if (errno == ESTALE) {
        return Changed(file.path, "it is gone");
      } else if (errno != EINTR) {
        return ErrnoError(errno, file.path);
      }
    }
    return Check(file, fd);
  }

  static Result<> Check(const FileInfo& file, int fd) {
    struct stat st {};
    if (::fstat(fd, &st) != 0) {
      if (errno == ESTALE) return Changed(file.path, "it is gone");
      return ErrnoError(errno, file.path);
    }
    if (!S_ISREG(st.st_mode)) {
      return Changed(file.path, "it is another kind of file");
    }
    if (StatId(st) == file.id) return {};
    return Changed(file.path, static_cast<uint64_t>(st.st_size) == file.size
                                  ? "its inode or times differ"
                                  : fmt::format("{} bytes, was {}", st.st_size,
                                                file.size));
  }

  const std::string no_namespace_;
  const LocalListing listing_;
  OpenFiles files_;
  Mutex mutex_;
  CondVar ended_;
  FetchId last_id_ GUARDED_BY(mutex_) = 0;
  std::unordered_map<FetchId, std::shared_ptr<std::atomic<bool>>> fetches_
      GUARDED_BY(mutex_);
  WorkerPool pool_;
};

}  // namespace

Result<std::unique_ptr<Origin>> CreateLocalOrigin(const std::string& path) {
  ASSIGN_OR_RETURN(LocalListing listing, ListLocal(path));
  return std::unique_ptr<Origin>(
      std::make_unique<LocalOrigin>(std::move(listing)));
}

}  // namespace weightfs
