// MountPlan: what `mount` checks and settles before anything is started: where
// it mounts, where it logs, and that the daemon can never come to read its own
// mount.

#ifndef WEIGHTFS_TOOLS_MOUNT_PLAN_H_
#define WEIGHTFS_TOOLS_MOUNT_PLAN_H_

#include <string>
#include <vector>

#include "formats/base/result.h"
#include "tools/options.h"

namespace weightfs {

struct MountPlan {
  // The source's path, if it is local, is absolute.
  Options options;
  std::string mountpoint;          // absolute, links resolved
  std::string log_file;            // "": standard error
  std::vector<std::string> notes;  // what was done on the way, for the user
};

// A crashed weightfs mount of this user at the mountpoint is unmounted on the
// way. REQUIRES: no other thread runs.
Result<MountPlan> PlanMount(const Options& options);

// kInvalid if `path`, which the daemon would open while it serves, lies in the
// mountpoint. `what`: "the cache folder". "" is no path.
Result<> CheckOutside(const std::string& what, const std::string& path,
                      const std::string& mountpoint);

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_MOUNT_PLAN_H_
