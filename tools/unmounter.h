// Unmounter: unmounts a mount of an ordinary user, which takes a program
// (fusermount3), from a process of its own that was started before the daemon
// opened any file. The daemon itself could not start one while its cache's disk
// hangs: closing the cache's files on the way would wait for the disk.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_TOOLS_UNMOUNTER_H_
#define WEIGHTFS_TOOLS_UNMOUNTER_H_

#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include "formats/base/mutex.h"
#include "formats/base/unique_fd.h"

namespace weightfs {

class Unmounter {
 public:
  // Starts the process; null if it cannot be. It ends with this one.
  // REQUIRES: no other thread runs.
  static std::unique_ptr<Unmounter> Start(const std::string& mountpoint);
  // Ends the process.
  ~Unmounter() = default;
  Unmounter(const Unmounter&) = delete;
  Unmounter& operator=(const Unmounter&) = delete;

  // Detaches the mount. False if that failed, or took longer than `limit`.
  bool Unmount(std::chrono::milliseconds limit) EXCLUDES(mutex_);

 private:
  explicit Unmounter(UniqueFd fd) : fd_(std::move(fd)) {}

  Mutex mutex_;
  const UniqueFd fd_;  // a socket
};

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_UNMOUNTER_H_
