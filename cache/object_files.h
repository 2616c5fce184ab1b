// ObjectFiles: one object's folder in the cache, open: `data` and `meta`. Made
// beside and renamed into place, so that no process ever sees half of one; of
// two that make one at once, the second uses the first's.
//
// Thread-safety: OpenObjectFiles is safe for concurrent use, also between
// processes.

#ifndef WEIGHTFS_CACHE_OBJECT_FILES_H_
#define WEIGHTFS_CACHE_OBJECT_FILES_H_

#include <cstdint>
#include <memory>
#include <string>

#include "cache/cache_disk.h"
#include "cache/cache_folder.h"
#include "cache/cache_space.h"
#include "cache/meta_file.h"
#include "formats/base/result.h"
#include "formats/base/unique_fd.h"

namespace weightfs {

struct ObjectFiles {
  // For reading and writing; its description holds the pins, and the lock that
  // says that the object is open.
  UniqueFd data;
  UniqueFd claims;  // for locks; not valid: there are no claims
  std::unique_ptr<MetaFile> meta;
};

// Opens the object in the folder `path` (relative), made if it is not there.
// One that is not whole, or not of this id and size, is renamed to
// "<path>.bad-<unique>" and made anew; the last such is kept. An error
// means that the disk cannot hold the object now: serve it without the cache.
// REQUIRES: size <= kMaxObjectSize, `id` is plain hex (see ObjectPath).
struct ObjectToOpen {
  CacheFolder& folder;
  CacheDisk& disk;
  CacheSpace& space;
  ContentId id;
  uint64_t size;
  uint64_t owner;  // NamespaceNumber of whoever opens it
};
Result<ObjectFiles> OpenObjectFiles(const ObjectToOpen& object,
                                    const std::string& path);

// The object in the folder of its VerifiedPath, whoever's it was; kNotFound if
// there is none. One that is not verified any more is moved to where it
// belongs.
Result<ObjectFiles> OpenVerifiedFiles(const ObjectToOpen& object);

// The object in the folder `path` as it is, whoever's it is; nothing is made.
// kNotFound: there is none. kCorrupt: it cannot be used.
Result<ObjectFiles> OpenExistingFiles(const ObjectToOpen& object,
                                      const std::string& path);
// Sets the object aside, as OpenObjectFiles does, if it cannot be used.
Result<> SetAsideDamaged(const ObjectToOpen& object, const std::string& path);

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_OBJECT_FILES_H_
