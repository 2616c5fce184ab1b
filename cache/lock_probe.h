// A probe of what the cache needs of a file system: OFD locks that one process
// sees of another, and mapped files that processes share.

#ifndef WEIGHTFS_CACHE_LOCK_PROBE_H_
#define WEIGHTFS_CACHE_LOCK_PROBE_H_

#include <string>

#include "formats/base/result.h"

namespace weightfs {

// Tries both on the file `name` in the folder `dir_fd`, which it makes and
// removes. kUnsupported with the reason; kIo if the probe could not be made. On
// a full disk only the locks are tried, so that what a cache there holds can
// still be read, and evicted.
//
// It forks: a second open file description in one process is not enough, since
// a file system may tell owners apart by process. The child only makes
// async-signal-safe calls, so that threads in the parent do no harm.
Result<> ProbeLocks(int dir_fd, const std::string& name);

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_LOCK_PROBE_H_
