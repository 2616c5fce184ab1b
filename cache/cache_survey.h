// CacheSurvey: what of a file is cached, as its origin's readers would find it,
// and taking that away. It makes nothing, fetches nothing and hashes nothing.
//
// Works beside mounts of the folder: what is in use, by this or any other
// process, stays.
//
// Thread-safety: one thread at a time. All of it waits for the disk.

#ifndef WEIGHTFS_CACHE_CACHE_SURVEY_H_
#define WEIGHTFS_CACHE_CACHE_SURVEY_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cache/cache_disk.h"
#include "cache/origin.h"
#include "formats/base/result.h"

namespace weightfs {

struct CacheParts;

class CacheSurvey {
 public:
  struct Found {
    std::vector<bool> granules;  // of the file; true: it is there
    bool verified = false;       // its whole-file hash was right
  };
  struct Dropped {
    uint64_t freed = 0;  // bytes of the disk
    uint64_t kept = 0;   // bytes of the disk that stay: in use, or see `why`
    std::string why{};   // the disk's error, if there was one
  };

  // The folder as it is; kNotFound if there is none. Otherwise as
  // ObjectCache::Open. `disk` must outlive it.
  static Result<std::unique_ptr<CacheSurvey>> Open(
      const std::string& folder, CacheDisk& disk = CacheDisk::System());
  ~CacheSurvey();

  // Nothing is there of a file that the cache does not keep (too large, no id
  // that can be cached, empty).
  Found Look(const std::string& cache_namespace, const FileInfo& file);
  // Drops what Look would find, and what the namespace itself holds of it.
  Dropped Drop(const std::string& cache_namespace, const FileInfo& file);

 private:
  explicit CacheSurvey(std::shared_ptr<CacheParts> parts);
  // The object in the folder `path`, if readers of `owner` may use it.
  Found LookAt(const std::string& path, const FileInfo& file, uint64_t owner);
  void DropAt(const std::string& path, Dropped& dropped);

  const std::shared_ptr<CacheParts> parts_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_CACHE_SURVEY_H_
