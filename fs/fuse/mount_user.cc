#include "fs/fuse/mount_user.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/close_range.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <utility>

#include "formats/base/worker_pool.h"

namespace weightfs {
namespace {

// Straight to the kernel: the thread's descriptors are not the process's, and
// who looks on for the process (a sanitizer) would mix them up.
long OpenAt(int folder, const std::string& path, int flags) {
  return ::syscall(SYS_openat, folder, path.c_str(), flags | O_CLOEXEC, 0);
}

class OwnFd {
 public:
  explicit OwnFd(long fd) : fd_(static_cast<int>(fd)) {}
  ~OwnFd() {
    if (fd_ >= 0) ::syscall(SYS_close, fd_);
  }
  OwnFd(const OwnFd&) = delete;
  OwnFd& operator=(const OwnFd&) = delete;
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }

 private:
  const int fd_;
};

// From here on, the calling thread has a descriptor table of its own, with
// nothing in it but standard input, output and error.
bool LeaveDescriptors() {
  return ::syscall(SYS_close_range, 3U, ~0U, CLOSE_RANGE_UNSHARE) == 0;
}

// Of what the kernel knows: asks nobody.
std::string DeviceOf(int fd) {
  struct statx st {};
  if (::syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, 0U,
                &st) != 0) {
    return "";
  }
  return fmt::format("{}:{}", st.stx_dev_major, st.stx_dev_minor);
}

bool OpenAndClose(int root, const std::string& path) {
  return OwnFd(
             OpenAt(root, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY))
      .valid();
}

bool Stat(int root, const std::string& path) {
  struct statx st {};
  return ::syscall(SYS_statx, root, path.c_str(),
                   AT_SYMLINK_NOFOLLOW | AT_STATX_DONT_SYNC, 0U, &st) == 0;
}

}  // namespace

struct MountUser::Call {
  std::string path;
  Act act;
  std::optional<Outcome> outcome;  // guarded by the user's mutex
};

MountUser::MountUser(std::string mountpoint)
    : mountpoint_(std::move(mountpoint)),
      thread_(StartThread("wfs-user", [this] { Serve(); })) {}

MountUser::~MountUser() { Stop(); }

void MountUser::SetDevice(std::string device) {
  MutexLock lock(mutex_);
  device_ = std::move(device);
}

MountUser::Outcome MountUser::Open(std::string path) {
  return Run(std::move(path), OpenAndClose);
}

MountUser::Outcome MountUser::LookUp(std::string path) {
  return Run(std::move(path), Stat);
}

MountUser::Outcome MountUser::Run(std::string path, Act act) {
  auto call = std::make_shared<Call>();
  call->path = std::move(path);
  call->act = act;
  MutexLock lock(mutex_);
  calls_.push_back(call);
  changed_.NotifyAll();
  while (!call->outcome && !stopped_) changed_.Wait(mutex_);
  return call->outcome.value_or(Outcome::kStopped);
}

void MountUser::Stop() {
  MutexLock lock(mutex_);
  stopped_ = true;
  changed_.NotifyAll();
}

void MountUser::Serve() {
  thread_id_ = ::gettid();
  const bool apart = LeaveDescriptors();
  for (;;) {
    std::shared_ptr<Call> call;
    std::string device;
    {
      MutexLock lock(mutex_);
      while (calls_.empty() && !stopped_) changed_.Wait(mutex_);
      if (stopped_) return;
      call = std::move(calls_.front());
      calls_.pop_front();
      device = device_;
    }
    const bool done = apart && Reach(device, *call);
    MutexLock lock(mutex_);
    call->outcome = done ? Outcome::kDone : Outcome::kFailed;
    changed_.NotifyAll();
  }
}

bool MountUser::Reach(const std::string& device, const Call& call) const {
  const OwnFd root(OpenAt(AT_FDCWD, mountpoint_, O_PATH | O_DIRECTORY));
  return root.valid() && DeviceOf(root.get()) == device &&
         call.act(root.get(), call.path);
}

}  // namespace weightfs
