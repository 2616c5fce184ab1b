// Origin: where a model's bytes come from: a repository of the Hub, a local
// folder. One Origin object stands for one repository at one commit.
//
// Thread-safety: implementations are safe for concurrent use. List and Stat
// block; StartFetch does not.

#ifndef WEIGHTFS_CACHE_ORIGIN_H_
#define WEIGHTFS_CACHE_ORIGIN_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/base/result.h"

namespace weightfs {

// What a file's bytes are known by.
struct ContentId {
  enum class Kind : uint8_t {
    kSha256,  // 64 hex digits: SHA-256 of the bytes
    kGit,     // 40 hex digits: SHA-1 of "blob SIZE\0" and the bytes
    kStat,    // a local file: device, inode, size, mtime, ctime
  };
  Kind kind = Kind::kStat;
  std::string value;
  bool operator==(const ContentId&) const = default;
  // "sha256:…", "git:…", "stat:…".
  std::string ToString() const;
};

struct FileInfo {
  std::string path;   // relative, `/` between components, no `.` or `..`
  uint64_t size = 0;  // bytes
  ContentId id;
  bool operator==(const FileInfo&) const = default;
};

// A repository at one commit. Immutable.
struct Snapshot {
  std::string repo;      // "org/name", or the local folder's absolute path
  std::string revision;  // as asked for: "main", a tag, a commit; "" if local
  // 40 hex digits; for a local folder a hash over its files' ids.
  std::string commit;
  // Private or gated; of a local folder: not every user may read all its files.
  bool restricted = false;
  std::vector<FileInfo> files;  // sorted by path, bytewise; no duplicates

  // Null if there is none.
  const FileInfo* Find(std::string_view path) const;
};

// True for a path that may become a FileInfo::path: relative, no empty, `.` or
// `..` component, no NUL, components of at most 255 bytes. Listings from a
// server are checked with it.
bool IsSafePath(std::string_view path);

// Takes the bytes of one fetch. Calls come one at a time, in order, on a thread
// of the origin's, and must not block for long.
class FetchSink {
 public:
  virtual ~FetchSink() = default;
  // An answer came, with this HTTP status; what follows is of it. For messages.
  virtual void OnStatus(int /*status*/) {}
  // The next bytes. False stops the fetch; OnDone(kCancelled) follows.
  virtual bool OnData(std::span<const std::byte> data) = 0;
  // The end, exactly once. OK: every byte asked for was given to OnData. Else
  // the bytes given so far are right, and a new fetch may start after them.
  // kUnavailable: worth a retry. Any other code is final. The message names
  // file, range and, where there was one, the HTTP status.
  virtual void OnDone(Result<> result) = 0;
};

// Identifies a running fetch of one origin; never 0, never reused.
using FetchId = uint64_t;

class Origin {
 public:
  virtual ~Origin() = default;

  // For messages and status: "https://huggingface.co/org/name". No secrets.
  virtual const std::string& name() const = 0;
  // The namespace of this origin's ids in the cache (its endpoint), or "" if
  // its files are read where they are and never cached.
  virtual const std::string& cache_namespace() const = 0;

  // The files at the commit that this origin is bound to. The first call binds
  // it (resolves a branch); later calls return the same.
  virtual Result<std::shared_ptr<const Snapshot>> List() = 0;
  // One file, by path; kNotFound if it is not in the commit.
  virtual Result<FileInfo> Stat(const std::string& path);

  // Starts one attempt to fetch [offset, offset + length) of `file`, which is
  // of this origin's List(). No retries but those of the protocol (a redirect,
  // a signed URL that expired). REQUIRES: length > 0 and the range is in the
  // file.
  virtual FetchId StartFetch(const FileInfo& file, uint64_t offset,
                             uint64_t length,
                             std::shared_ptr<FetchSink> sink) = 0;
  // Asks a fetch to stop: its OnDone comes soon, with kCancelled unless it
  // ended otherwise first. Unknown ids are ignored.
  virtual void CancelFetch(FetchId id) = 0;
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_ORIGIN_H_
