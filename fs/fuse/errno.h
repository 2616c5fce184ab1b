// The one table from error codes to errno.

#ifndef WEIGHTFS_FS_FUSE_ERRNO_H_
#define WEIGHTFS_FS_FUSE_ERRNO_H_

#include "formats/base/error.h"

namespace weightfs {

int ToErrno(Code code);

}  // namespace weightfs

#endif  // WEIGHTFS_FS_FUSE_ERRNO_H_
