#include "tools/daemon.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "formats/base/mutex.h"
#include "formats/base/unique_fd.h"
#include "tools/exit_codes.h"
#include "tools/text.h"

namespace weightfs {
namespace {

// Lines on the pipe: a letter and text without control bytes.
//   P<pid>  W<warning>  R<ready line>  F<exit code> <message>
constexpr int kPipeFd = 3;
constexpr std::chrono::seconds kEndLimit{5};
constexpr std::array kEndSignals = {SIGINT, SIGTERM, SIGHUP};
// Nobody who sends these means to end a mount. A limit of file sizes (SIGXFSZ)
// is as a full disk.
constexpr std::array kIgnored = {SIGPIPE,   SIGUSR1, SIGUSR2, SIGALRM,
                                 SIGVTALRM, SIGPROF, SIGIO,   SIGXFSZ};

// NOLINTNEXTLINE(cppcoreguidelines-avoid-non-const-global-variables): a handler
volatile std::sig_atomic_t caught_signal = 0;
void CatchSignal(int signal) { caught_signal = signal; }

void SendLine(int fd, char kind, std::string_view text) {
  const std::string line = fmt::format("{}{}\n", kind, Printable(text));
  std::string_view left = line;
  while (!left.empty()) {
    const ssize_t n = ::write(fd, left.data(), left.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;  // nobody waits any more
    left.remove_prefix(static_cast<size_t>(n));
  }
}

class PipeReporter final : public Reporter {
 public:
  explicit PipeReporter(UniqueFd fd) : fd_(std::move(fd)) {
    MutexLock lock(mutex_);
    SendLine(fd_.get(), 'P', std::to_string(::getpid()));
  }
  void Warn(std::string_view line) override {
    MutexLock lock(mutex_);
    if (fd_.valid()) SendLine(fd_.get(), 'W', line);
  }
  void Ready(std::string_view line) override { SendLast('R', line); }
  void Fail(int exit_code, std::string_view line) override {
    SendLast('F', fmt::format("{} {}", exit_code, line));
  }

 private:
  void SendLast(char kind, std::string_view line) {
    MutexLock lock(mutex_);
    if (fd_.valid()) SendLine(fd_.get(), kind, line);
    fd_.Reset();
  }

  Mutex mutex_;
  UniqueFd fd_ GUARDED_BY(mutex_);
};

class ConsoleReporter final : public Reporter {
 public:
  // Warnings are in the log, which is standard error unless a file was asked
  // for.
  void Warn(std::string_view) override {}
  void Ready(std::string_view line) override {
    fmt::print("{}\n", Printable(line));
    std::fflush(stdout);
    NotifyServiceManager("READY=1\nSTATUS=serving");
  }
  void Fail(int, std::string_view line) override {
    fmt::print(stderr, "weightfs: {}\n", Printable(line));
    NotifyServiceManager(fmt::format("STATUS={}", Printable(line)));
  }
};

// --- the parent's side ---

class Waiter {
 public:
  Waiter(UniqueFd fd, std::string log_file)
      : fd_(std::move(fd)), log_file_(std::move(log_file)) {}

  // Until the daemon reported or ended, or a signal came.
  int Wait(const sigset_t& signals_let_in) {
    while (!outcome_.has_value()) {
      if (caught_signal != 0) return EndDaemon(caught_signal);
      pollfd entry{fd_.get(), POLLIN, 0};
      if (::ppoll(&entry, 1, nullptr, &signals_let_in) < 0) continue;
      std::array<char, 4096> buffer{};
      const ssize_t n = ::read(fd_.get(), buffer.data(), buffer.size());
      if (n < 0) continue;
      if (n == 0) return Died();
      text_.append(buffer.data(), static_cast<size_t>(n));
      TakeLines();
    }
    return *outcome_;
  }

 private:
  void TakeLines() {
    size_t end = 0;
    while (!outcome_.has_value() &&
           (end = text_.find('\n')) != std::string::npos) {
      const std::string line = text_.substr(0, end);
      text_.erase(0, end + 1);
      if (!line.empty()) TakeLine(line[0], line.substr(1));
    }
  }

  void TakeLine(char kind, const std::string& text) {
    switch (kind) {
      case 'P':
        std::from_chars(text.data(), text.data() + text.size(), daemon_);
        return;
      case 'W':
        fmt::print(stderr, "weightfs: {}\n", text);
        return;
      case 'R':
        fmt::print("{}\n", text);
        std::fflush(stdout);
        outcome_ = kExitOk;
        return;
      case 'F': {
        int code = kExitFailure;
        const auto parsed =
            std::from_chars(text.data(), text.data() + text.size(), code);
        fmt::print(stderr, "weightfs: {}\n",
                   text.substr(std::min<size_t>(
                       static_cast<size_t>(parsed.ptr - text.data()) + 1,
                       text.size())));
        outcome_ = code;
        return;
      }
      default:
        return;
    }
  }

  // The daemon is our child, since this process reaps orphans.
  std::optional<int> WaitForEnd(std::chrono::milliseconds limit) const {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    while (daemon_ > 0) {
      int status = 0;
      const pid_t ended = ::waitpid(daemon_, &status, WNOHANG);
      if (ended == daemon_) return status;
      if (ended < 0 && errno != EINTR) break;
      if (std::chrono::steady_clock::now() >= deadline) break;
      ::poll(nullptr, 0, 5);
    }
    return std::nullopt;
  }

  int Died() const {
    const auto status = WaitForEnd(std::chrono::seconds(1));
    std::string how = "ended without a report";
    if (status.has_value() && WIFSIGNALED(*status)) {
      how = fmt::format("was killed by signal {} ({})", WTERMSIG(*status),
                        // NOLINTNEXTLINE(concurrency-mt-unsafe): one thread
                        ::strsignal(WTERMSIG(*status)));
    } else if (status.has_value() && WIFEXITED(*status)) {
      how = fmt::format("ended without a report (exit code {})",
                        WEXITSTATUS(*status));
    }
    fmt::print(stderr, "weightfs: the daemon {}; see {}\n", how, log_file_);
    return kExitFailure;
  }

  int EndDaemon(int signal) const {
    if (daemon_ > 0) {
      ::kill(daemon_, SIGTERM);
      if (!WaitForEnd(kEndLimit).has_value()) ::kill(daemon_, SIGKILL);
    }
    fmt::print(stderr, "weightfs: interrupted; nothing is mounted\n");
    return kExitSignal + signal;
  }

  UniqueFd fd_;
  const std::string log_file_;
  std::string text_;
  pid_t daemon_ = -1;
  std::optional<int> outcome_;
};

void LetIn(const sigset_t& mask) { ::sigprocmask(SIG_SETMASK, &mask, nullptr); }

// In the process that will be the daemon: lets go of all that belongs to the
// caller.
UniqueFd Detach(int log_fd, UniqueFd report_end, const sigset_t& mask) {
  if (::chdir("/") != 0) ::_exit(kExitFailure);  // "/" is always there
  std::signal(SIGHUP, SIG_IGN);  // there is no terminal that could go
  ::umask(077);
  const int null_fd = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  ::dup2(null_fd, STDIN_FILENO);
  ::dup2(log_fd, STDOUT_FILENO);
  ::dup2(log_fd, STDERR_FILENO);
  // Above all that is open, then down to the first free number, so that one
  // call closes the rest.
  UniqueFd high(::fcntl(report_end.get(), F_DUPFD_CLOEXEC, kPipeFd + 1));
  report_end.Reset();
  ::dup3(high.get(), kPipeFd, O_CLOEXEC);
  high.Release();
  ::close_range(kPipeFd + 1, ~0U, 0);
  LetIn(mask);
  return UniqueFd(kPipeFd);
}

int StartFailed(const char* what) {
  fmt::print(stderr, "weightfs: the daemon cannot be started: {}: {}\n", what,
             std::generic_category().message(errno));
  return kExitFailure;
}

}  // namespace

int RunInBackground(int log_fd, const std::string& log_file, const Body& body) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return StartFailed("pipe");
  UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  sigset_t held;
  sigset_t before;
  sigemptyset(&held);
  for (const int signal : kEndSignals) sigaddset(&held, signal);
  // Held until ppoll, so that none falls between a check and a wait.
  ::sigprocmask(SIG_BLOCK, &held, &before);
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  std::fflush(nullptr);

  const pid_t child = ::fork();
  if (child < 0) return StartFailed("fork");
  if (child == 0) {
    ::setsid();
    // A second fork, so that the daemon leads no session and can get no
    // terminal.
    const pid_t daemon = ::fork();
    if (daemon != 0) ::_exit(daemon < 0 ? kExitFailure : kExitOk);
    read_end.Reset();
    PipeReporter reporter(Detach(log_fd, std::move(write_end), before));
    return body(reporter);
  }
  write_end.Reset();
  struct sigaction action {};
  action.sa_handler = CatchSignal;
  for (const int signal : kEndSignals) {
    struct sigaction inherited {};
    ::sigaction(signal, nullptr, &inherited);
    // What nohup or a shell's `&` made deaf stays so.
    if (inherited.sa_handler == SIG_IGN) continue;
    ::sigaction(signal, &action, nullptr);
  }
  ::waitpid(child, nullptr, 0);
  return Waiter(std::move(read_end), log_file).Wait(before);
}

int RunInForeground(const Body& body) {
  if (::chdir("/") != 0) return StartFailed("chdir");
  ConsoleReporter reporter;
  return body(reporter);
}

void PrepareProcess() {
  for (const int signal : kIgnored) std::signal(signal, SIG_IGN);
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &files);
  }
}

size_t CountOpenFiles() {
  std::error_code failed;
  std::filesystem::directory_iterator entry("/proc/self/fd", failed);
  size_t count = 0;
  for (; !failed && entry != std::filesystem::directory_iterator();
       entry.increment(failed)) {
    ++count;
  }
  return count == 0 ? 0 : count - 1;  // the folder itself
}

void NotifyServiceManager(std::string_view state) {
  // NOLINTNEXTLINE(concurrency-mt-unsafe): nobody changes the environment
  const char* path = std::getenv("NOTIFY_SOCKET");
  sockaddr_un address{};
  if (path == nullptr) return;
  const size_t length = std::strlen(path);
  if (length < 2 || length >= sizeof(address.sun_path)) return;
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path, length);
  if (path[0] == '@') address.sun_path[0] = '\0';  // an abstract name
  const UniqueFd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return;
  ::sendto(fd.get(), state.data(), state.size(), MSG_NOSIGNAL | MSG_DONTWAIT,
           // NOLINTNEXTLINE(cppcoreguidelines-pro-type-reinterpret-cast): POSIX
           reinterpret_cast<const sockaddr*>(&address),
           static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length));
}

}  // namespace weightfs
