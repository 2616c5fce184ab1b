// How `mount` becomes a daemon, and how the daemon reports to whoever waits for
// it: a parent on a pipe, or a service manager.

#ifndef WEIGHTFS_TOOLS_DAEMON_H_
#define WEIGHTFS_TOOLS_DAEMON_H_

#include <functional>
#include <string>
#include <string_view>

namespace weightfs {

// Thread-safety: safe for concurrent use.
class Reporter {
 public:
  virtual ~Reporter() = default;
  // Something the user should know before the end is clear. Ignored after it.
  virtual void Warn(std::string_view line) = 0;
  // It serves; `line` is for standard output.
  virtual void Ready(std::string_view line) = 0;
  // It failed; `line` is for standard error.
  virtual void Fail(int exit_code, std::string_view line) = 0;
};

using Body = std::function<int(Reporter&)>;

// Runs `body` in a process of its own: no terminal, working folder `/`, umask
// 077, standard input empty, output and error to `log_fd`. In the calling
// process it returns the exit code once the daemon reported (0: it serves), in
// the daemon the result of `body`. A signal in the meantime ends both.
// REQUIRES: no other thread runs. Messages name `log_file`.
int RunInBackground(int log_fd, const std::string& log_file, const Body& body);

// Runs `body` in this process, working folder `/`, with the reports on standard
// output and error, and to systemd's NOTIFY_SOCKET if there is one.
int RunInForeground(const Body& body);

// Raises the limit of open files to what is allowed and ignores the signals
// that nobody sends to end a mount, SIGPIPE among them.
void PrepareProcess();
// Of this process.
size_t CountOpenFiles();

// Tells the service manager; nothing without NOTIFY_SOCKET.
void NotifyServiceManager(std::string_view state);

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_DAEMON_H_
