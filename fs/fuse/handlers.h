// The FUSE operations, as functions that libfuse calls. Each does one thing:
// hands the request to the Vfs and replies with what comes back.

#ifndef WEIGHTFS_FS_FUSE_HANDLERS_H_
#define WEIGHTFS_FS_FUSE_HANDLERS_H_

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>

#include <atomic>
#include <memory>

#include "formats/base/mutex.h"
#include "fs/fuse/requests.h"
#include "fs/fuse_settings.h"
#include "fs/vfs.h"

namespace weightfs {

inline constexpr uint32_t kMaxRequest = 1 << 20;  // bytes; libfuse 3.14's limit
// Read-ahead requests that the kernel sends at once. Those that it holds back
// have no deadline, and their readers none: each may want four (4 MiB).
inline constexpr uint32_t kMaxBackground = 512;

// The session's userdata.
struct FuseState {
  FuseState(Vfs& served, const RequestTimes& times);

  Vfs* const vfs;
  uid_t uid = 0;
  gid_t gid = 0;
  // The kernel may send look-ups and listings of one folder side by side.
  std::atomic<bool> parallel_folders{false};
  std::atomic<bool> answered{false};  // anything, so far: INIT

  Mutex mutex;
  CondVar changed;
  bool initialised GUARDED_BY(mutex) = false;
  FuseSettings settings GUARDED_BY(mutex);

  Requests requests;  // those that the Vfs works on
};

const fuse_lowlevel_ops& FuseHandlers();

}  // namespace weightfs

#endif  // WEIGHTFS_FS_FUSE_HANDLERS_H_
