// CacheFolder: the cache's top folder: made, checked and kept open. What lies
// in it is in cache/LAYOUT.md. All names below are relative to it.
//
// Thread-safety: safe for concurrent use, also between processes; Open forks a
// probe and should be called before threads start.

#ifndef WEIGHTFS_CACHE_CACHE_FOLDER_H_
#define WEIGHTFS_CACHE_CACHE_FOLDER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "formats/base/result.h"
#include "formats/base/unique_fd.h"

namespace weightfs {

inline constexpr unsigned kCacheVersion = 1;

class CacheFolder {
 public:
  // See ObjectCache::Open.
  static Result<std::unique_ptr<CacheFolder>> Open(const std::string& path);
  // Opens a folder without the checks of locks and versions, for small files
  // that are renamed into place. kDenied as Open.
  static Result<std::unique_ptr<CacheFolder>> OpenPlain(
      const std::string& path);

  int fd() const { return fd_.get(); }
  const std::string& path() const { return path_; }

  // A new name in tmp/, whose files a later Open removes if they were left.
  std::string TempPath();
  // Makes a folder and those above it, mode 0700; fine if they are there.
  Result<> MakeFolders(std::string_view relative) const;
  // The names in a folder; none if it cannot be read.
  std::vector<std::string> Names(const std::string& relative) const;
  // Removes a file, or a folder and the files in it. Not there: fine.
  void Remove(const std::string& relative) const;

  // The bytes of a regular file; kNotFound. Over `limit` bytes: kCorrupt.
  Result<std::string> ReadFile(const std::string& relative,
                               uint64_t limit) const;
  // Writes a whole file, mode 0600, synced before it is renamed into place.
  // Makes the folders above it.
  Result<> WriteFile(const std::string& relative, std::string_view text);

 private:
  CacheFolder(std::string path, UniqueFd fd)
      : path_(std::move(path)), fd_(std::move(fd)) {}

  Result<> Prepare();
  Result<> CheckVersion();
  void RemoveLeftovers() const;

  const std::string path_;
  const UniqueFd fd_;
  std::atomic<uint64_t> temp_names_{0};
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_CACHE_FOLDER_H_
