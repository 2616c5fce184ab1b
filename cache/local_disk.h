// Whether a folder lies on a disk of this machine.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_CACHE_LOCAL_DISK_H_
#define WEIGHTFS_CACHE_LOCAL_DISK_H_

#include <string>

namespace weightfs {

// False if its file system is none of those that are known to be on a disk or
// in memory here (a network's, FUSE, overlayfs), or if it cannot be told. What
// reads such files itself, as the kernel does in a passthrough, cannot be given
// up where their server hangs. Waits for the disk.
bool IsOnLocalDisk(const std::string& folder);

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_LOCAL_DISK_H_
