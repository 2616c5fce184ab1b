#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <optional>
#include <string>

#include "formats/base/unique_fd.h"
#include "tools/commands.h"
#include "tools/exit_codes.h"
#include "tools/holders.h"
#include "tools/mount_registry.h"
#include "tools/mount_table.h"

namespace weightfs {
namespace {

constexpr std::chrono::milliseconds kDaemonLimit{5'000};
constexpr std::chrono::milliseconds kHoldersLimit{3'000};
constexpr size_t kMaxHolders = 5;

Error BusyError(const std::string& mountpoint) {
  std::string users;
  for (const Holder& holder :
       FindHolders(mountpoint, kMaxHolders, kHoldersLimit)) {
    users += fmt::format("{}{} ({})", users.empty() ? "" : ", ", holder.pid,
                         holder.command);
  }
  return MakeError(Code::kIo,
                   "{} is busy{}{}; end what uses it, or detach it with: "
                   "weightfs umount --lazy {}",
                   mountpoint, users.empty() ? "" : ", used by ", users,
                   mountpoint);
}

// The daemon of a mount, watched through a descriptor that a reused pid cannot
// fool.
class Daemon {
 public:
  explicit Daemon(std::optional<MountRecord> record) {
    if (!record.has_value()) return;
    pid_ = record->pid;
    fd_.Reset(static_cast<int>(::syscall(SYS_pidfd_open, record->pid, 0)));
    if (!IsRunning(*record)) fd_.Reset();
  }

  // False if it still runs after `limit`.
  bool WaitForEnd(std::chrono::milliseconds limit) const {
    if (!fd_.valid()) return true;
    pollfd entry{fd_.get(), POLLIN, 0};
    return ::poll(&entry, 1, static_cast<int>(limit.count())) != 0;
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = 0;
  UniqueFd fd_;
};

Result<> UnmountWeightfs(const Options& options,
                         const std::string& mountpoint) {
  ASSIGN_OR_RETURN(const auto table, ReadMountTable());
  const MountEntry* entry = FindMount(table, mountpoint);
  if (entry == nullptr) {
    const MountEntry* above = FindWeightfsAbove(table, mountpoint);
    if (above == nullptr) {
      return MakeError(Code::kNotFound, "nothing is mounted at {}", mountpoint);
    }
    return MakeError(Code::kNotFound,
                     "{} is a part of the mount at {}; unmount that",
                     mountpoint, above->mountpoint);
  }
  if (entry->type != kWeightfsType) {
    return MakeError(Code::kNotFound,
                     "{} is a mount of type {}, not of weightfs; use: umount "
                     "{}",
                     mountpoint, entry->type, mountpoint);
  }
  const Daemon daemon(MountRegistry(options.run_dir).Find(mountpoint));
  const auto unmounted = Unmount(
      mountpoint, options.lazy ? UnmountMode::kLazy : UnmountMode::kNow);
  if (!unmounted.has_value()) {
    if (unmounted.error().code() == Code::kUnavailable) {
      return BusyError(mountpoint);
    }
    Error error = unmounted.error();
    return error.AddContext(mountpoint);
  }
  // A detached mount serves until its last user is gone.
  if (options.lazy) return {};
  if (!daemon.WaitForEnd(kDaemonLimit)) {
    return MakeError(Code::kIo,
                     "{} is unmounted, but its daemon (pid {}) still runs: "
                     "another mount namespace (a container) may hold the "
                     "mount; end it with: kill {}",
                     mountpoint, daemon.pid(), daemon.pid());
  }
  return {};
}

}  // namespace

int RunUmount(const Options& options) {
  const auto mountpoint = ResolveMountpoint(options.mountpoint);
  if (!mountpoint.has_value()) return ReportError(mountpoint.error());
  // Whoever types it in the mount's folder should not be told off by us, too.
  if (::chdir("/") != 0) return kExitFailure;
  const auto unmounted = UnmountWeightfs(options, *mountpoint);
  return unmounted.has_value() ? static_cast<int>(kExitOk)
                               : ReportError(unmounted.error());
}

}  // namespace weightfs
