#include "tools/unmounter.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <utility>

#include "tools/mount_table.h"

namespace weightfs {
namespace {

// Each byte that comes is a request, each that goes its result. The end of the
// daemon ends the socket.
[[noreturn]] void Serve(int socket, const std::string& mountpoint) {
  ::prctl(PR_SET_NAME, "wfs-unmounter");
  // The daemon's signals are not for it: it ends when that does.
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    std::signal(signal, SIG_IGN);
  }
  ::dup2(socket, STDIN_FILENO);
  const int null_fd = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  ::dup2(null_fd, STDOUT_FILENO);
  ::dup2(null_fd, STDERR_FILENO);
  ::close_range(STDERR_FILENO + 1, ~0U, 0);
  char byte = 0;
  while (::read(STDIN_FILENO, &byte, 1) == 1) {
    byte = Unmount(mountpoint, UnmountMode::kLazy).has_value() ? 'y' : 'n';
    if (::write(STDIN_FILENO, &byte, 1) != 1) break;
  }
  ::_exit(0);
}

}  // namespace

std::unique_ptr<Unmounter> Unmounter::Start(const std::string& mountpoint) {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) {
    return nullptr;
  }
  UniqueFd ours(ends[0]);
  const UniqueFd theirs(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) return nullptr;
  if (child == 0) {
    // Once removed, so that nobody has to wait for it.
    if (::fork() != 0) ::_exit(0);
    Serve(theirs.get(), mountpoint);
  }
  while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
  return std::unique_ptr<Unmounter>(new Unmounter(std::move(ours)));
}

bool Unmounter::Unmount(std::chrono::milliseconds limit) {
  MutexLock lock(mutex_);
  char byte = 'u';
  if (::send(fd_.get(), &byte, 1, MSG_NOSIGNAL) != 1) return false;
  pollfd entry{fd_.get(), POLLIN, 0};
  if (::poll(&entry, 1, static_cast<int>(limit.count())) != 1) return false;
  return ::read(fd_.get(), &byte, 1) == 1 && byte == 'y';
}

}  // namespace weightfs
