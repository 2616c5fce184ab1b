// What the kernel lets a mount have, read from and written to sysfs. Never
// touches the mount itself: a daemon that waits for its own mount hangs.

#ifndef WEIGHTFS_FS_FUSE_KERNEL_SETTINGS_H_
#define WEIGHTFS_FS_FUSE_KERNEL_SETTINGS_H_

#include <cstdint>
#include <optional>
#include <string>

namespace weightfs {

// "MAJOR:MINOR" of the newest mount at `mountpoint`, from the text of
// /proc/self/mountinfo.
std::optional<std::string> DeviceOfMount(const std::string& mountinfo,
                                         const std::string& mountpoint);

// Waits (bounded) until the kernel took the INIT reply with `max_background`,
// then raises the mount's read-ahead where permitted. The value in effect; 0 if
// it cannot be read.
uint32_t RaiseReadAhead(const std::string& mountpoint, uint32_t max_background,
                        uint32_t read_ahead_kb);

}  // namespace weightfs

#endif  // WEIGHTFS_FS_FUSE_KERNEL_SETTINGS_H_
