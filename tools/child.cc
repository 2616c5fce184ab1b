#include "tools/child.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <system_error>

#include "formats/base/unique_fd.h"

// POSIX's, which no header declares.
extern char** environ;  // NOLINT(readability-redundant-declaration)

namespace weightfs {
namespace {

using Steady = std::chrono::steady_clock;

constexpr size_t kMaxOutput = 64 * 1024;

Error SystemError(const char* what, int error) {
  return MakeError(Code::kIo, "{}: {}", what,
                   std::generic_category().message(error));
}

void WriteFully(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    text.remove_prefix(static_cast<size_t>(n));
  }
}

// Reads to the end of `fd`; false if `deadline` passed first.
bool ReadUntil(int fd, Steady::time_point deadline, std::string* text) {
  std::array<char, 4096> buffer{};
  while (true) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - Steady::now());
    if (left.count() <= 0) return false;
    pollfd entry{fd, POLLIN, 0};
    const int ready = ::poll(&entry, 1, static_cast<int>(left.count()) + 1);
    if (ready < 0 && errno != EINTR) return false;
    if (ready <= 0) continue;
    const ssize_t n = ::read(fd, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return true;
    const size_t room = kMaxOutput - std::min(kMaxOutput, text->size());
    text->append(buffer.data(), std::min(room, static_cast<size_t>(n)));
  }
}

// Waits for `child` until `deadline`; its wait status, or -1.
int WaitUntil(pid_t child, Steady::time_point deadline) {
  while (true) {
    int status = 0;
    const pid_t ended = ::waitpid(child, &status, WNOHANG);
    if (ended == child) return status;
    if (ended < 0 && errno != EINTR) return -1;
    if (Steady::now() >= deadline) return -1;
    ::poll(nullptr, 0, 5);
  }
}

// Kills `child` and reaps it if it goes at once; one that is stuck in the
// kernel stays behind.
void KillAndLeave(pid_t child) {
  ::kill(child, SIGKILL);
  WaitUntil(child, Steady::now() + std::chrono::milliseconds(50));
}

// So that one who is left behind does not keep its caller's pipes open.
void CloseStandardFiles(int but = -1) {
  const int null_fd = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  for (const int standard : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (standard != but) ::dup2(null_fd, standard);
  }
}

// NOLINTNEXTLINE(cppcoreguidelines-avoid-non-const-global-variables): a handler
volatile pid_t forward_to = -1;
void Forward(int signal) { ::kill(forward_to, signal); }

// The first of each signal goes to `child`; signals that are ignored stay so.
void ForwardSignals(pid_t child) {
  forward_to = child;
  struct sigaction action {};
  action.sa_handler = Forward;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction inherited {};
    ::sigaction(signal, nullptr, &inherited);
    if (inherited.sa_handler == SIG_IGN) continue;
    ::sigaction(signal, &action, nullptr);
  }
}

[[noreturn]] void EndBy(int signal) {
  ::signal(signal, SIG_DFL);
  ::raise(signal);
  ::_exit(128 + signal);
}

}  // namespace

int RunAside(const std::function<int(const Leave& leave)>& body,
             AsideSignals signals) {
  std::array<int, 2> ends{};
  const pid_t parent = ::getpid();
  const pid_t child =
      ::pipe2(ends.data(), O_CLOEXEC) == 0 ? ::fork() : pid_t{-1};
  if (child < 0) return body([](int code) { ::_exit(code); });
  UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  if (child == 0) {
    read_end.Reset();
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (::getppid() != parent) ::_exit(EXIT_FAILURE);
    // NOLINTNEXTLINE(concurrency-mt-unsafe): `body` has ended its threads
    std::exit(body([fd = write_end.get()](int code) {
      CloseStandardFiles();
      const char text = static_cast<char>(code);
      WriteFully(fd, {&text, 1});
      ::_exit(code);
    }));
  }
  write_end.Reset();
  if (signals == AsideSignals::kForwarded) ForwardSignals(child);
  unsigned char left_with = 0;
  ssize_t n = -1;
  do {
    n = ::read(read_end.get(), &left_with, 1);
  } while (n < 0 && errno == EINTR);
  if (n == 1) return left_with;
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFSIGNALED(status)) EndBy(WTERMSIG(status));
  return WEXITSTATUS(status);
}

Result<ChildOutput> RunInChild(
    std::chrono::milliseconds limit,
    const std::function<
        void(const std::function<void(std::string_view)>& write)>& body) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return SystemError("pipe", errno);
  UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) return SystemError("fork", errno);
  if (child == 0) {
    const int fd = write_end.get();
    CloseStandardFiles(fd);
    body([fd](std::string_view text) { WriteFully(fd, text); });
    ::_exit(0);
  }
  write_end.Reset();
  ChildOutput output;
  output.timed_out =
      !ReadUntil(read_end.get(), Steady::now() + limit, &output.text);
  if (output.timed_out) {
    KillAndLeave(child);
  } else {
    // The pipe is closed, so it is on its way out.
    WaitUntil(child, Steady::now() + std::chrono::seconds(1));
  }
  return output;
}

Result<ProgramOutput> RunProgram(const std::vector<std::string>& arguments,
                                 std::chrono::milliseconds limit) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return SystemError("pipe", errno);
  UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  std::vector<char*> argv;
  argv.reserve(arguments.size() + 1);
  for (const std::string& argument : arguments) {
    // NOLINTNEXTLINE(cppcoreguidelines-pro-type-const-cast): POSIX's signature
    argv.push_back(const_cast<char*>(argument.c_str()));
  }
  argv.push_back(nullptr);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null",
                                   O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, write_end.get(), STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, write_end.get(), STDERR_FILENO);
  pid_t child = -1;
  const int failed =
      ::posix_spawnp(&child, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed != 0) {
    return MakeError(failed == ENOENT ? Code::kNotFound : Code::kIo,
                     "{} cannot be run: {}", arguments[0],
                     std::generic_category().message(failed));
  }
  write_end.Reset();
  const auto deadline = Steady::now() + limit;
  ProgramOutput output;
  ReadUntil(read_end.get(), deadline, &output.error_text);
  const int status = WaitUntil(child, deadline);
  if (status == -1) {
    KillAndLeave(child);
  } else if (WIFEXITED(status)) {
    output.exit_code = WEXITSTATUS(status);
  }
  return output;
}

}  // namespace weightfs
