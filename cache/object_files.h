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
#include "cache/meta_file.h"
#include "formats/base/result.h"
#include "formats/base/unique_fd.h"

namespace weightfs {

struct ObjectFiles {
  UniqueFd data;  // for reading and writing; its description holds the pins
  std::unique_ptr<MetaFile> meta;
};

// Opens the object in the folder `path` (relative), made if it is not there.
// One that is not whole, or not of this id and size, is renamed to
// "<path>.bad-<unique>" and made anew; the last such is kept. An error
// means that the disk cannot hold the object now: serve it without the cache.
// REQUIRES: size <= kMaxObjectSize, `id` is plain hex (see ObjectPath).
Result<ObjectFiles> OpenObjectFiles(CacheFolder& folder, CacheDisk& disk,
                                    const std::string& path,
                                    const ContentId& id, uint64_t size);

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_OBJECT_FILES_H_
