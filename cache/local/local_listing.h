// The files below a folder on this machine, with ids made of what stat says.
//
// Left out: `.git` folders, symlinks to folders (a tree must end), symlinks
// that lead nowhere, sockets, FIFOs and devices, and, with a log line, folders
// that cannot be read. Symlinks to regular files are followed wherever they
// lead: a snapshot in the Hub's own cache is made of links into ../../blobs.
//
// Thread-safety: free functions, safe for concurrent use.

#ifndef WEIGHTFS_CACHE_LOCAL_LOCAL_LISTING_H_
#define WEIGHTFS_CACHE_LOCAL_LOCAL_LISTING_H_

#include <sys/stat.h>

#include <memory>
#include <set>
#include <string>

#include "cache/origin.h"
#include "formats/base/result.h"
#include "formats/base/unique_fd.h"

namespace weightfs {

// Device, inode, size, mtime and ctime, to the nanosecond.
ContentId StatId(const struct stat& st);

// A Code for an errno of the file system.
Code CodeOfErrno(int error);
// "folder/file: No such file or directory".
Error ErrnoError(int error, const std::string& path);

struct LocalListing {
  // An O_PATH descriptor of the folder that paths are relative to.
  UniqueFd root;
  std::shared_ptr<const Snapshot> snapshot;
  // Paths that were symlinks; the others are opened with O_NOFOLLOW.
  std::set<std::string> links;
};

// `path`: a folder, or one file. kInvalid: neither.
Result<LocalListing> ListLocal(const std::string& path);

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_LOCAL_LOCAL_LISTING_H_
