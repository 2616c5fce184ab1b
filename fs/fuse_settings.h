// What the kernel granted a mount, for the log and for status.

#ifndef WEIGHTFS_FS_FUSE_SETTINGS_H_
#define WEIGHTFS_FS_FUSE_SETTINGS_H_

#include <cstdint>

namespace weightfs {

struct FuseSettings {
  uint32_t max_read = 0;        // bytes of a request
  uint32_t max_background = 0;  // requests in flight
  uint32_t read_ahead_kb = 0;   // 0: unknown
};

}  // namespace weightfs

#endif  // WEIGHTFS_FS_FUSE_SETTINGS_H_
