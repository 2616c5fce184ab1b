#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <optional>
#include <string>
#include <utility>

#include "formats/base/unique_fd.h"
#include "fs/fuse/kernel_settings.h"
#include "tools/child.h"
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
// --force ends in 5 s altogether.
constexpr std::chrono::milliseconds kRegistryLimit{500};
constexpr std::chrono::milliseconds kReactionLimit{1'500};
constexpr std::chrono::milliseconds kDaemonEndLimit{1'000};

Error BusyError(const std::string& mountpoint) {
  std::string users;
  for (const Holder& holder :
       FindHolders(mountpoint, kMaxHolders, kHoldersLimit)) {
    users += fmt::format("{}{} ({})", users.empty() ? "" : ", ", holder.pid,
                         holder.command);
  }
  return MakeError(Code::kIo,
                   "{} is busy{}{}; end what uses it, or detach it with: "
                   "weightfs umount --lazy {} (--force ends it at once)",
                   mountpoint, users.empty() ? "" : ", used by ", users,
                   mountpoint);
}

// The daemon of a mount, watched through a descriptor that a reused pid cannot
// fool.
class Daemon {
 public:
  explicit Daemon(std::optional<MountRecord> found)
      : record_(std::move(found)) {
    if (!record_.has_value()) return;
    fd_.Reset(static_cast<int>(::syscall(SYS_pidfd_open, record_->pid, 0)));
    if (!IsRunning(*record_)) fd_.Reset();
  }

  // False if it still runs after `limit`. The descriptor alone does not tell: a
  // thread that is stuck in the kernel holds the rest of a process that ended.
  bool WaitForEnd(std::chrono::milliseconds limit) const {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    while (fd_.valid() && IsRunning(*record_)) {
      if (std::chrono::steady_clock::now() >= deadline) return false;
      pollfd entry{fd_.get(), POLLIN, 0};
      ::poll(&entry, 1, 20);
    }
    return true;
  }
  void Signal(int number) const {
    if (!fd_.valid()) return;
    ::syscall(SYS_pidfd_send_signal, fd_.get(), number, nullptr, 0);
  }
  bool running() const { return fd_.valid() && IsRunning(*record_); }
  bool stopped() const {
    return running() && ProcessState(record_->pid) == 'T';
  }
  pid_t pid() const { return record_.has_value() ? record_->pid : 0; }

 private:
  const std::optional<MountRecord> record_;
  UniqueFd fd_;
};

// From the registry, which may lie on a disk that hangs.
std::optional<MountRecord> FindRecord(const std::string& run_dir,
                                      const std::string& mountpoint) {
  const auto output = RunInChild(kRegistryLimit, [&](const auto& write) {
    const auto record = MountRegistry(run_dir).Find(mountpoint);
    if (record.has_value()) write(FormatRecord(*record));
  });
  if (!output.has_value()) return std::nullopt;
  return ParseRecord(output->text);
}

// Ends the kernel's side: who waits for an answer gets an error. Permitted to
// who mounted and to root.
void AbortConnection(const std::string& mountpoint) {
  const std::string device = DeviceOfMount(mountpoint);
  if (device.empty()) return;
  std::ofstream("/sys/fs/fuse/connections/" +
                device.substr(device.find(':') + 1) + "/abort")
      << "1\n";
}

bool IsMounted(const std::string& mountpoint) {
  const auto table = ReadMountTable();
  if (!table.has_value()) return false;
  const MountEntry* entry = FindMount(*table, mountpoint);
  return entry != nullptr && entry->type == kWeightfsType;
}

// What reacts ends in order; what does not is ended.
Result<> ForceUnmount(const std::string& mountpoint, const Daemon& daemon) {
  if (daemon.running() && !daemon.stopped()) {
    daemon.Signal(SIGTERM);
    if (daemon.WaitForEnd(kReactionLimit) && !IsMounted(mountpoint)) return {};
  }
  if (IsMounted(mountpoint)) {
    AbortConnection(mountpoint);
    const auto unmounted = Unmount(mountpoint, UnmountMode::kLazy);
    if (!unmounted.has_value() && IsMounted(mountpoint)) {
      Error error = unmounted.error();
      return error.AddContext(mountpoint);
    }
  }
  // It may be about to end by itself, now that nothing is mounted.
  if (daemon.stopped() || !daemon.WaitForEnd(kDaemonEndLimit)) {
    daemon.Signal(SIGKILL);
  }
  if (daemon.WaitForEnd(kDaemonEndLimit)) return {};
  return MakeError(Code::kIo,
                   "{} is unmounted, but its daemon (pid {}) cannot be killed",
                   mountpoint, daemon.pid());
}

Result<> UnmountWeightfs(const Options& options,
                         const std::string& mountpoint) {
  ASSIGN_OR_RETURN(const auto table, ReadMountTable());
  const MountEntry* entry = FindMount(table, mountpoint);
  const auto daemon = Daemon(FindRecord(options.run_dir, mountpoint));
  if (entry == nullptr && options.force && daemon.running()) {
    return ForceUnmount(mountpoint, daemon);  // it was detached
  }
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
  if (options.force) return ForceUnmount(mountpoint, daemon);
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
