#include "fs/fuse/session.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <thread>
#include <utility>

#include "formats/base/log.h"
#include "formats/base/unique_fd.h"
#include "formats/base/worker_pool.h"
#include "fs/fuse/handlers.h"
#include "fs/fuse/kernel_settings.h"
#include "fs/fuse/mount_user.h"

namespace weightfs {
namespace {

void LogFuse(fuse_log_level level, const char* format, va_list args) {
  char line[512];
  std::vsnprintf(line, sizeof(line), format, args);
  std::string_view text(line);
  while (text.ends_with('\n')) text.remove_suffix(1);
  LogLine(level <= FUSE_LOG_ERR ? LogLevel::kError : LogLevel::kInfo, text);
}

Result<> CheckMountpoint(const std::string& mountpoint) {
  struct stat st;
  if (::stat(mountpoint.c_str(), &st) != 0) {
    return MakeError(errno == EACCES ? Code::kDenied : Code::kNotFound,
                     "{}: {}; make the folder first", mountpoint,
                     std::strerror(errno));  // NOLINT(concurrency-mt-unsafe)
  }
  if (!S_ISDIR(st.st_mode)) {
    return MakeError(Code::kInvalid, "{}: not a folder; mount on a folder",
                     mountpoint);
  }
  return {};
}

Result<> CheckDevice() {
  const UniqueFd device(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
  if (device.valid()) return {};
  if (errno == ENOENT) {
    return Error(Code::kUnsupported,
                 "no /dev/fuse; load the kernel module (modprobe fuse), or "
                 "give the container --device /dev/fuse");
  }
  return MakeError(
      Code::kDenied,
      "/dev/fuse: {}; its mode should be 0666 (chmod 666 /dev/fuse)",
      std::strerror(errno));  // NOLINT(concurrency-mt-unsafe)
}

class LowLevelSession final : public FuseSession {
 public:
  LowLevelSession(Vfs& vfs, FuseOptions options)
      : options_(std::move(options)),
        state_(vfs, options_.times),
        user_(options_.mountpoint) {
    state_.uid = ::getuid();
    state_.gid = ::getgid();
    state_.no_passthrough = options_.no_passthrough;
    state_.disconnected = options_.disconnected;
  }
  ~LowLevelSession() override {
    state_.requests.Stop();
    user_.Stop();
    if (session_ == nullptr) return;
    if (mounted_) fuse_session_unmount(session_);
    fuse_remove_signal_handlers(session_);
    fuse_session_destroy(session_);
  }
  LowLevelSession(const LowLevelSession&) = delete;
  LowLevelSession& operator=(const LowLevelSession&) = delete;

  Result<> Mount();
  Result<> Serve(std::function<void(const FuseSettings&)> ready) override;
  RequestTotals requests() override {
    RequestTotals totals = state_.requests.totals();
    totals.reads = state_.reads;
    return totals;
  }
  PassthroughTotals passthrough() override {
    return state_.passthrough.totals();
  }
  bool GiveUp() override;
  void Invalidate(uint64_t node) override;

 private:
  void Announce(const std::function<void(const FuseSettings&)>& ready);
  void StartPassthrough();
  void ForgetIdle();
  bool ForgetName(uint64_t node, const Vfs::Place& place);
  bool Connected() const;
  void Hangup();
  bool SeemUnmounted();

  const FuseOptions options_;
  FuseState state_;
  MountUser user_;
  fuse_session* session_ = nullptr;
  bool mounted_ = false;
};

Result<> LowLevelSession::Mount() {
  std::string mount_options =
      "ro,nosuid,nodev,fsname=weightfs,subtype=weightfs,default_permissions";
  if (options_.allow_other) mount_options += ",allow_other";
  std::string program = "weightfs";
  std::string flag = "-o";
  char* argv[] = {program.data(), flag.data(), mount_options.data(), nullptr};
  fuse_args args = FUSE_ARGS_INIT(3, argv);
  fuse_set_log_func(LogFuse);
  session_ =
      fuse_session_new(&args, &FuseHandlers(), sizeof(FuseHandlers()), &state_);
  fuse_opt_free_args(&args);
  if (session_ == nullptr) {
    return Error(Code::kIo, "libfuse refused the session; see the log");
  }
  // Before the mount is there: a signal that came between would leave it dead.
  if (fuse_set_signal_handlers(session_) != 0) {
    return Error(Code::kIo, "cannot install the signal handlers");
  }
  if (fuse_session_mount(session_, options_.mountpoint.c_str()) != 0) {
    return MakeError(
        Code::kDenied, "{}: the mount failed; {}", options_.mountpoint,
        options_.allow_other
            ? "--allow-other needs user_allow_other in /etc/fuse.conf, and the "
              "folder must be yours"
            : "fusermount3 must be installed and the folder must be yours");
  }
  mounted_ = true;
  if (!UseOwnIo(session_)) {
    return Error(Code::kIo, "libfuse refused I/O of our own; see the log");
  }
  return {};
}

void LowLevelSession::Announce(
    const std::function<void(const FuseSettings&)>& ready) {
  {
    MutexLock lock(state_.mutex);
    while (!state_.initialised) state_.changed.Wait(state_.mutex);
    if (state_.settings.max_read == 0) return;  // ended before it began
  }
  const std::string device = DeviceOfMount(options_.mountpoint);
  user_.SetDevice(device);
  const uint32_t read_ahead =
      RaiseReadAhead(device, kMaxBackground, options_.read_ahead_kb);
  StartPassthrough();
  FuseSettings settings;
  {
    MutexLock lock(state_.mutex);
    state_.settings.read_ahead_kb = read_ahead;
    settings = state_.settings;
  }
  LogInfo("mount serves; max_read={} max_background={} read_ahead_kb={}{}",
          settings.max_read, settings.max_background, read_ahead,
          read_ahead < options_.read_ahead_kb ? " (more read-ahead needs root)"
                                              : "");
  ready(settings);
}

void LowLevelSession::StartPassthrough() {
  if (state_.no_passthrough.empty()) {
    state_.passthrough.On(Passthrough::KernelDevice(fuse_session_fd(session_)));
  } else {
    state_.passthrough.Off(state_.no_passthrough);
  }
  const PassthroughTotals totals = state_.passthrough.totals();
  state_.names_expire = totals.on;
  LogInfo("passthrough={}{}", totals.on ? "on" : "off: ", totals.why);
}

// An open that may not keep pages waits for reads of them and drops them. The
// kernel has a notification for that, too, but who sends it waits with
// /dev/fuse in hand; so that is for a mount that has no path any more (detached
// from it, say) alone.
void LowLevelSession::Invalidate(uint64_t node) {
  {
    MutexLock lock(state_.mutex);
    if (!state_.opened.contains(node)) return;
    state_.stale.insert(node);
  }
  const auto outcome = user_.Open(state_.vfs->Describe(node));
  if (outcome == MountUser::Outcome::kFailed) {
    // Not known to the kernel (ENOENT), or unmounted: nothing to forget.
    static_cast<void>(fuse_lowlevel_notify_inval_inode(session_, node, 0, 0));
  }
  MutexLock lock(state_.mutex);
  state_.stale.erase(node);
}

// A name that expired and is looked up in vain is forgotten, and with it the
// file. That waits for others who look into the folder, as the notification for
// it does, but not with /dev/fuse in hand. False: it was not looked up.
bool LowLevelSession::ForgetName(uint64_t node, const Vfs::Place& place) {
  {
    MutexLock lock(state_.mutex);
    state_.hidden = {user_.thread_id(), place.folder, place.name};
    state_.found_hidden = false;
  }
  const auto outcome = user_.LookUp(state_.vfs->Describe(node));
  MutexLock lock(state_.mutex);
  state_.hidden.reset();
  return state_.found_hidden || outcome == MountUser::Outcome::kStopped;
}

// Has the kernel forget files that nobody has open, so that their bytes can be
// evicted.
void LowLevelSession::ForgetIdle() {
  for (;;) {
    const auto idle = state_.passthrough.TakeIdle();
    if (idle.empty()) return;
    for (const uint64_t node : idle) {
      const auto place = state_.vfs->PlaceOf(node);
      if (!place) continue;
      if (ForgetName(node, *place)) continue;
      // Not known by that name any more (ENOENT): it is forgotten, or will be.
      static_cast<void>(fuse_lowlevel_notify_inval_entry(
          session_, place->folder, place->name.data(), place->name.size()));
    }
  }
}

bool LowLevelSession::GiveUp() {
  const bool connected = Connected();
  state_.requests.FailAll();
  Hangup();
  return connected;
}

// False once the mount is gone, or its connection was aborted.
bool LowLevelSession::Connected() const {
  pollfd entry{fuse_session_fd(session_), 0, 0};
  return ::poll(&entry, 1, 0) == 0;
}

// Closes the connection, and leaves a descriptor that can be closed again.
// Readers get an error for what they ask later.
void LowLevelSession::Hangup() {
  const UniqueFd null_fd(::open("/dev/null", O_RDWR | O_CLOEXEC));
  ::dup3(null_fd.get(), fuse_session_fd(session_), O_CLOEXEC);
}

// Closes the connection. In its place libfuse finds what tells of an unmount,
// as to poll(), so that it unmounts nothing: another mount may be there by now.
// False: no descriptors left.
bool LowLevelSession::SeemUnmounted() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return false;
  ::close(ends[0]);  // POLLERR at the other end
  const UniqueFd broken(ends[1]);
  return ::dup3(broken.get(), fuse_session_fd(session_), O_CLOEXEC) >= 0;
}

Result<> LowLevelSession::Serve(
    std::function<void(const FuseSettings&)> ready) {
  std::jthread announcer =
      StartThread("wfs-announce", [this, &ready] { Announce(ready); });
  std::jthread forgetter = StartThread("wfs-forget", [this] { ForgetIdle(); });
  fuse_loop_config* config = fuse_loop_cfg_create();
  fuse_loop_cfg_set_clone_fd(config, 0);
  // More where all are busy: as many as can be stuck in the cache at once.
  fuse_loop_cfg_set_max_threads(
      config, static_cast<unsigned>(options_.threads + options_.spare_threads));
  fuse_loop_cfg_set_idle_threads(config,
                                 static_cast<unsigned>(options_.threads));
  const int result = fuse_session_loop_mt(session_, config);
  fuse_loop_cfg_destroy(config);
  {
    MutexLock lock(state_.mutex);
    state_.initialised = true;  // lets the announcer go
    state_.changed.NotifyAll();
  }
  state_.passthrough.Stop();
  state_.vfs->Shutdown();
  if (!state_.requests.WaitIdle(std::chrono::seconds(1))) {
    LogWarning("unmounting with requests that got no answer from the disk");
    state_.requests.FailAll();
  }
  const bool unmounted = options_.unmount && Connected() && options_.unmount();
  if (unmounted && !SeemUnmounted()) {
    Hangup();
  } else {
    fuse_session_unmount(session_);
  }
  mounted_ = false;
  user_.Stop();
  announcer.join();
  forgetter.join();
  if (result < 0) {
    return MakeError(Code::kIo, "the FUSE loop ended with errno {}", -result);
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<FuseSession>> FuseSession::Mount(
    Vfs& vfs, const FuseOptions& options) {
  RETURN_IF_ERROR(CheckMountpoint(options.mountpoint));
  RETURN_IF_ERROR(CheckDevice());
  auto session = std::make_unique<LowLevelSession>(vfs, options);
  RETURN_IF_ERROR(session->Mount());
  return std::unique_ptr<FuseSession>(std::move(session));
}

}  // namespace weightfs
