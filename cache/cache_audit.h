// CacheAudit: checks what a cache folder holds against what it must be: every
// granule against its entry, whole objects against their ids. It reads from the
// disk, whatever anybody hashed before, and needs no network. Damaged granules
// and wrong objects are dropped, so that the next read fetches them anew; a
// whole object that is right becomes a verified one.
//
// Works beside mounts of the folder: it takes the pins that readers take.
//
// Thread-safety: one thread at a time.

#ifndef WEIGHTFS_CACHE_CACHE_AUDIT_H_
#define WEIGHTFS_CACHE_CACHE_AUDIT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cache/cache_disk.h"
#include "cache/origin.h"
#include "formats/base/result.h"

namespace weightfs {

struct CacheParts;
struct ObjectToOpen;

class CacheAudit {
 public:
  enum class State {
    kOk,       // all of it, with the right hash
    kWrong,    // some of it was not what it must be; that was dropped
    kMissing,  // nothing of it is cached
    kPartial,  // a part, each granule as it was published
  };
  struct Verdict {
    State state = State::kMissing;
    ContentId id{};
    uint64_t size = 0;          // bytes of the file
    uint64_t cached_bytes = 0;  // that are cached and were not dropped
    std::string why{};          // kWrong: what was wrong, and what was done
  };
  // How far the check came, by how many bytes of a file at a time, cached or
  // not.
  using OnBytes = std::function<void(uint64_t)>;

  // The folder as it is; kNotFound if there is none. Otherwise as
  // ObjectCache::Open. `disk` must outlive it.
  static Result<std::unique_ptr<CacheAudit>> Open(
      const std::string& folder, OnBytes on_bytes,
      CacheDisk& disk = CacheDisk::System());
  ~CacheAudit();

  // The file as readers of the namespace see it. One that the disk does not
  // give is kWrong.
  Verdict CheckFile(const std::string& cache_namespace, const FileInfo& file);

  // Every object: its folder, relative to the cache's.
  struct Object {
    std::string path;
    uint64_t size = 0;  // of `data`
  };
  std::vector<Object> Objects() const;
  // kMissing: it is gone meanwhile.
  Verdict CheckObject(const Object& object);

 private:
  CacheAudit(std::shared_ptr<CacheParts> parts, OnBytes on_bytes);
  void AddObjects(const std::string& folder, std::vector<Object>* all) const;
  bool PassByUnverified(const std::string& path, const FileInfo& file);
  ObjectToOpen ToOpen(const ContentId& id, uint64_t size) const;
  Verdict Check(const std::string& path, const ContentId& id, uint64_t size);

  const std::shared_ptr<CacheParts> parts_;
  const OnBytes on_bytes_;
};

// "ok", "wrong", "missing", "partial".
std::string_view AuditStateName(CacheAudit::State state);

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_CACHE_AUDIT_H_
