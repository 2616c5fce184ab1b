// FuseSession: the Vfs on the kernel's FUSE. A thin adapter over libfuse's
// low-level API that holds no policy.

#ifndef WEIGHTFS_FS_FUSE_SESSION_H_
#define WEIGHTFS_FS_FUSE_SESSION_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "formats/base/result.h"
#include "fs/fuse_settings.h"
#include "fs/vfs.h"

namespace weightfs {

struct FuseOptions {
  std::string mountpoint;  // absolute
  bool allow_other = false;
  size_t threads = 4;        // FUSE workers; none ever waits for the network
  size_t spare_threads = 4;  // started where all others are busy
  uint32_t read_ahead_kb = 4096;  // asked for; needs privilege
  RequestTimes times;             // read and metadata: those of the Vfs
  // Why no file can be passed through (fs/fuse/passthrough.h), if so: there is
  // no cache, say.
  std::string no_passthrough;
  // Runs if the kernel ends the connection (an unmount, an abort), on each
  // worker that sees it, even if others are stuck: must not wait. May be empty.
  std::function<void()> disconnected;
  // Detaches the mount, in libfuse's stead; false if it could not. May be
  // empty.
  std::function<bool()> unmount;
};

class FuseSession {
 public:
  // Mounts. kDenied, kInvalid say what to do (no /dev/fuse, no fusermount3, not
  // a folder, user_allow_other missing).
  static Result<std::unique_ptr<FuseSession>> Mount(Vfs& vfs,
                                                    const FuseOptions& options);
  // To be destroyed once the Vfs's pools have stopped.
  virtual ~FuseSession() = default;

  // Serves until unmounted, SIGTERM, SIGINT or SIGHUP; then answers what is
  // parked, unmounts (lazily if busy) and returns. `ready` runs once the mount
  // serves. REQUIRES: called from the only thread that lets signals in.
  virtual Result<> Serve(std::function<void(const FuseSettings&)> ready) = 0;
  // Has the kernel forget the node's pages: they may be wrong. Waits for reads
  // of them, so not for threads that serve; returns when serving ends.
  virtual void Invalidate(uint64_t node) = 0;

  // What the kernel waits for now. From any thread.
  virtual RequestTotals requests() = 0;
  virtual PassthroughTotals passthrough() = 0;
  // Answers all that wait with EIO and closes the connection. From any thread,
  // and only if the process ends at once after it. True if the mount is still
  // there; false if it is gone, and another may be in its place.
  virtual bool GiveUp() = 0;
};

}  // namespace weightfs

#endif  // WEIGHTFS_FS_FUSE_SESSION_H_
