// Work that may hang for ever in the kernel (a look at a mount whose daemon is
// stuck), done in a child process that can be left behind.

#ifndef WEIGHTFS_TOOLS_CHILD_H_
#define WEIGHTFS_TOOLS_CHILD_H_

#include <chrono>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/base/result.h"

namespace weightfs {

// What a child reported before it ended or ran out of time.
struct ChildOutput {
  std::string text;
  bool timed_out = false;
};

// Runs `body` in a child process; it reports with `write`. Returns when the
// child ended or after `limit`, when the child is killed and, if it cannot be,
// left behind. REQUIRES: no other thread runs.
Result<ChildOutput> RunInChild(
    std::chrono::milliseconds limit,
    const std::function<
        void(const std::function<void(std::string_view)>& write)>& body);

// Runs `body` in a child process that has this one's files and terminal, and
// returns the exit code that `body` returned; ends by the signal that ended the
// child. `body` may call `leave` with its exit code, from any thread: the child
// ends then as well as it can, and is not waited for. REQUIRES: no other thread
// runs.
//
// Signals: this process ends by SIGINT, SIGTERM and SIGHUP at once, and the
// child after it. kForwarded: the child gets them, and ends as it sees fit; a
// second one ends this process.
using Leave = std::function<void(int code)>;
enum class AsideSignals { kEndBoth, kForwarded };
int RunAside(const std::function<int(const Leave& leave)>& body,
             AsideSignals signals = AsideSignals::kEndBoth);

struct ProgramOutput {
  int exit_code = -1;      // -1: it was killed, by its signal or by `limit`
  std::string error_text;  // its standard error, 64 KiB at most
};
// Runs a program found in PATH, with an empty standard input, and waits for it.
// kNotFound: there is none.
Result<ProgramOutput> RunProgram(const std::vector<std::string>& arguments,
                                 std::chrono::milliseconds limit);

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_CHILD_H_
