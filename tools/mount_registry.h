// MountRegistry: one small file for each running mount of this user, so that
// `status` and `umount` find the daemons. Files are written whole and renamed
// into place; those of daemons that are gone are removed when seen.
//
// A record holds the process's start time, the boot and the pid namespace, so
// that a reused pid, or another machine that shares the folder, is never taken
// for a daemon.
//
// Thread-safety: safe for concurrent use, also between processes.

#ifndef WEIGHTFS_TOOLS_MOUNT_REGISTRY_H_
#define WEIGHTFS_TOOLS_MOUNT_REGISTRY_H_

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/base/result.h"

namespace weightfs {

struct MountRecord {
  pid_t pid = 0;
  uint64_t start_time = 0;  // of the process, in clock ticks since boot
  std::string machine;      // MachineId() of the daemon
  int64_t started = 0;      // Unix seconds
  std::string mountpoint;
  std::string source;  // as given
  std::string repo;
  std::string commit;
  std::string log_file;
  std::string cache_folder;
  bool operator==(const MountRecord&) const = default;
};

class MountRegistry {
 public:
  // `folder` is made at the first Add; "" keeps nothing. One that is another
  // uid's, or that others may write to, is not used.
  explicit MountRegistry(std::string folder) : folder_(std::move(folder)) {}

  // REQUIRES: record.pid and .machine are this process's.
  Result<> Add(const MountRecord& record);
  void Remove(const MountRecord& record);
  // Those whose daemon runs, by mountpoint.
  std::vector<MountRecord> List();
  // The newest for this mountpoint.
  std::optional<MountRecord> Find(std::string_view mountpoint);

 private:
  std::string PathOf(const MountRecord& record) const;
  Result<> CheckFolder() const;

  const std::string folder_;
};

// The record's lines, and back; nothing if they are damaged.
std::string FormatRecord(const MountRecord& record);
std::optional<MountRecord> ParseRecord(std::string_view text);

// When the process started; nothing if none of that pid runs (one that ended
// and was not waited for does not).
std::optional<uint64_t> ProcessStartTime(pid_t pid);
// Its state's letter in /proc; nothing if none of that pid runs.
std::optional<char> ProcessState(pid_t pid);
// True while the record's daemon runs.
bool IsRunning(const MountRecord& record);
// This boot and pid namespace.
std::string MachineId();

// A file name for what belongs to a mountpoint: its last component, for people,
// and a hash: "gpt2-1b4f0e98".
std::string MountSlug(std::string_view mountpoint);

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_MOUNT_REGISTRY_H_
