// MountTable: what is mounted, as /proc/self/mountinfo has it, and what state a
// weightfs mount is in. Nothing here touches a mount from this process.

#ifndef WEIGHTFS_TOOLS_MOUNT_TABLE_H_
#define WEIGHTFS_TOOLS_MOUNT_TABLE_H_

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/base/result.h"

namespace weightfs {

struct MountEntry {
  std::string mountpoint;
  std::string type;           // "fuse.weightfs"
  std::optional<uid_t> user;  // who mounted it, for FUSE
  bool operator==(const MountEntry&) const = default;
};

inline constexpr std::string_view kWeightfsType = "fuse.weightfs";

// The entries of a mountinfo file, in its order (a later one lies on top).
// Lines that cannot be parsed are left out.
std::vector<MountEntry> ParseMountInfo(std::string_view text);
// Of this process; kIo if there is no /proc.
Result<std::vector<MountEntry>> ReadMountTable();

// The topmost mount at exactly this path; null if there is none.
const MountEntry* FindMount(const std::vector<MountEntry>& table,
                            std::string_view mountpoint);
// The innermost weightfs mount that holds this path; null if there is none.
const MountEntry* FindWeightfsAbove(const std::vector<MountEntry>& table,
                                    std::string_view path);

enum class MountState {
  kLive,     // it answers
  kCrashed,  // its daemon is gone: "Transport endpoint is not connected"
  kHung,     // no answer in time
};
// Asks the mount from a child process. REQUIRES: no other thread runs.
MountState ProbeMount(const std::string& mountpoint,
                      std::chrono::milliseconds limit);

// `path` made absolute, its links resolved but for the last component, which
// may be a mount that must not be touched.
Result<std::string> ResolveMountpoint(const std::string& path);

// True if `path` is `folder` or lies below it. Both absolute and normal.
bool IsWithin(std::string_view path, std::string_view folder);

enum class UnmountMode { kNow, kLazy };
// Unmounts: directly if permitted, else with fusermount3. kUnavailable: busy.
Result<> Unmount(const std::string& mountpoint, UnmountMode mode);

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_MOUNT_TABLE_H_
