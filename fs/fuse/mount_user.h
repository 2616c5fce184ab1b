// MountUser: a thread of the daemon that uses the daemon's own mount, so that
// the kernel does what only a user's call makes it do.
//
// Such a call may wait for an answer of this very process, and no signal ends
// that wait. Were /dev/fuse among the thread's descriptors, it would stay open
// when the process is killed meanwhile: the kernel would wait for an answer for
// ever, and every user of the mount with it, `umount` included. So the thread
// has a descriptor table of its own, without it. Kill the process, and the
// connection ends, and the waits with it.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_FS_FUSE_MOUNT_USER_H_
#define WEIGHTFS_FS_FUSE_MOUNT_USER_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "formats/base/mutex.h"

namespace weightfs {

class MountUser {
 public:
  enum class Outcome {
    kDone,
    kFailed,   // or the mount can't be reached by its path (any more)
    kStopped,  // before it was through
  };

  // `mountpoint` is absolute. Reaches nothing before SetDevice().
  explicit MountUser(std::string mountpoint);
  ~MountUser();
  MountUser(const MountUser&) = delete;
  MountUser& operator=(const MountUser&) = delete;

  // The mount's device, as mountinfo has it ("0:52"): another mount's files,
  // over it or in its place, are not touched.
  void SetDevice(std::string device) EXCLUDES(mutex_);
  // Opens the file and closes it; `path` is relative to the mount. Waits for
  // that.
  Outcome Open(std::string path) EXCLUDES(mutex_);
  // Whoever waits returns. The thread may still wait itself, until the
  // connection ends.
  void Stop() EXCLUDES(mutex_);

 private:
  struct Call;

  void Serve() EXCLUDES(mutex_);
  bool OpenAndClose(const std::string& device, const std::string& path) const;

  const std::string mountpoint_;
  Mutex mutex_;
  CondVar changed_;
  std::string device_ GUARDED_BY(mutex_);
  std::deque<std::shared_ptr<Call>> calls_ GUARDED_BY(mutex_);
  bool stopped_ GUARDED_BY(mutex_) = false;
  std::jthread thread_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_FS_FUSE_MOUNT_USER_H_
