#include "tools/watched_work.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdint>
#include <utility>

#include "formats/base/unique_fd.h"
#include "formats/base/worker_pool.h"

namespace weightfs {
namespace {

// Between two ticks.
constexpr int kPauseMs = 200;

// Those that end a command; what is ignored stays so.
sigset_t EndSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction action {};
    ::sigaction(signal, nullptr, &action);
    if (action.sa_handler != SIG_IGN) sigaddset(&signals, signal);
  }
  return signals;
}

}  // namespace

std::chrono::milliseconds DiskTime::age() const {
  const Clock::Time::rep since = since_;
  if (since == 0) return {};
  return std::chrono::duration_cast<std::chrono::milliseconds>(
      Clock::System().Now() - Clock::Time(Clock::Time::duration(since)));
}

std::optional<int> WatchedWork::Run(Parts parts,
                                    std::chrono::milliseconds patience) {
  parts_ = std::move(parts);
  const sigset_t signals = EndSignals();
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  const UniqueFd signal_fd(::signalfd(-1, &signals, SFD_CLOEXEC));
  const UniqueFd ended_fd(::eventfd(0, EFD_CLOEXEC));
  thread_ = StartThread("wfs-warm", [this, fd = ended_fd.get()] {
    result_ = parts_.work();
    const uint64_t one = 1;
    (void)!::write(fd, &one, sizeof(one));
  });
  for (;;) {
    std::array<pollfd, 2> fds = {pollfd{signal_fd.get(), POLLIN, 0},
                                 pollfd{ended_fd.get(), POLLIN, 0}};
    ::poll(fds.data(), fds.size(), kPauseMs);
    if (fds[1].revents != 0) break;
    signalfd_siginfo info{};
    if (fds[0].revents != 0 &&
        ::read(signal_fd.get(), &info, sizeof(info)) == sizeof(info)) {
      parts_.stop(static_cast<int>(info.ssi_signo));
      thread_.join();
      return static_cast<int>(info.ssi_signo);
    }
    if (parts_.stuck() > patience) return std::nullopt;
    parts_.tick();
  }
  thread_.join();
  return 0;
}

}  // namespace weightfs
