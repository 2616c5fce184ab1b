// What the kernel granted a mount and asks of it, for the log and for status.

#ifndef WEIGHTFS_FS_FUSE_SETTINGS_H_
#define WEIGHTFS_FS_FUSE_SETTINGS_H_

#include <chrono>
#include <cstdint>
#include <string>

namespace weightfs {

struct FuseSettings {
  uint32_t max_read = 0;        // bytes of a request
  uint32_t max_background = 0;  // requests in flight
  uint32_t read_ahead_kb = 0;   // 0: unknown
};

struct RequestTimes {
  // From its start; the watchdog answers so much later than the Vfs should.
  std::chrono::milliseconds read{300'000};
  std::chrono::milliseconds metadata{30'000};
  std::chrono::milliseconds grace{3'000};
  // How long a read of resident memory may take.
  std::chrono::milliseconds resident{2'000};
};

// Files that the kernel reads by itself.
struct PassthroughTotals {
  bool on = false;
  std::string why;          // it is off
  uint64_t opens = 0;       // ever
  uint64_t registered = 0;  // files that it pins in the cache now
};

// What the kernel waits for now.
struct RequestTotals {
  uint64_t waiting = 0;
  double oldest_seconds = 0;
  uint64_t late = 0;   // ever given up by the watchdog
  uint64_t reads = 0;  // of the source's bytes, ever asked of the daemon
};

}  // namespace weightfs

#endif  // WEIGHTFS_FS_FUSE_SETTINGS_H_
