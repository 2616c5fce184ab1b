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

#include <sys/types.h>

#include <atomic>
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
  // Opens the file and closes it; looks it up. `path` is relative to the mount.
  // Both wait for that.
  Outcome Open(std::string path) EXCLUDES(mutex_);
  Outcome LookUp(std::string path) EXCLUDES(mutex_);
  // The thread, as the kernel names it in requests; 0 while it starts.
  pid_t thread_id() const { return thread_id_; }
  // Whoever waits returns. The thread may still wait itself, until the
  // connection ends.
  void Stop() EXCLUDES(mutex_);

 private:
  struct Call;
  using Act = bool (*)(int root, const std::string& path);

  Outcome Run(std::string path, Act act) EXCLUDES(mutex_);
  void Serve() EXCLUDES(mutex_);
  bool Reach(const std::string& device, const Call& call) const;

  const std::string mountpoint_;
  Mutex mutex_;
  CondVar changed_;
  std::string device_ GUARDED_BY(mutex_);
  std::deque<std::shared_ptr<Call>> calls_ GUARDED_BY(mutex_);
  bool stopped_ GUARDED_BY(mutex_) = false;
  std::atomic<pid_t> thread_id_{0};
  std::jthread thread_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_FS_FUSE_MOUNT_USER_H_
