// LocalOrigin: a folder, or one file, on this machine. Nothing is copied: each
// read checks before and after that (device, inode, size, mtime, ctime) are
// those of the listing; changed is kStale.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_CACHE_LOCAL_LOCAL_ORIGIN_H_
#define WEIGHTFS_CACHE_LOCAL_LOCAL_ORIGIN_H_

#include <memory>
#include <string>

#include "cache/origin.h"
#include "formats/base/result.h"

namespace weightfs {

// `path` is a folder (all regular files below it, symlinks to files followed,
// to folders not) or a file. Reads the listing at once. kNotFound, kDenied as
// the file system says.
Result<std::unique_ptr<Origin>> CreateLocalOrigin(const std::string& path);

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_LOCAL_LOCAL_ORIGIN_H_
