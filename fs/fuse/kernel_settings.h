// What the kernel lets a mount have, read from and written to sysfs. Never
// touches the mount itself: a daemon that waits for its own mount hangs.

#ifndef WEIGHTFS_FS_FUSE_KERNEL_SETTINGS_H_
#define WEIGHTFS_FS_FUSE_KERNEL_SETTINGS_H_

#include <cstdint>
#include <optional>
#include <string>

struct fuse_session;

namespace weightfs {

// "MAJOR:MINOR" of the newest mount at `mountpoint`, from the text of
// /proc/self/mountinfo.
std::optional<std::string> DeviceOfMount(const std::string& mountinfo,
                                         const std::string& mountpoint);

// As it is now; empty if nothing is mounted there.
std::string DeviceOfMount(const std::string& mountpoint);

// Waits (bounded) until the kernel took the INIT reply with `max_background`,
// then raises the read-ahead of the mount with that device where permitted. The
// value in effect; 0 if it cannot be read.
uint32_t RaiseReadAhead(const std::string& device, uint32_t max_background,
                        uint32_t read_ahead_kb);

// Has the session talk to the kernel by functions of ours. They let it send
// look-ups and listings of one folder side by side, if the state says so when
// INIT is answered: without that it lets one at a time into each folder, and
// those who wait for their turn cannot even be killed; libfuse 3.14 knows the
// flag and does not pass it on. And they call the state's `disconnected`. To be
// called once the session is mounted and before it serves; its userdata is a
// FuseState. False if libfuse refuses.
bool UseOwnIo(fuse_session* session);

}  // namespace weightfs

#endif  // WEIGHTFS_FS_FUSE_KERNEL_SETTINGS_H_
