// weightfs-chaos-readers: the readers of a chaos run. Forks the processes,
// makes good those that were killed, watches for calls that hang, and obeys the
// driver (chaos.py) on standard input:
//
//   window EXCUSE MOUNTS   opens a window (board.h); MOUNTS is a bit set
//   close NUMBER           closes it
//   signal PROCESS SIGNAL  to a reader process
//   pause / resume         pause answers once every reader rests
//   stats                  the counts so far
//   stop                   ends the readers and this program
//
// Each answer, and each thing that went wrong, is a line of JSON on standard
// output.

#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "tests/chaos/board.h"
#include "tests/chaos/caller.h"
#include "tests/chaos/reader.h"
#include "tests/chaos/source.h"

namespace weightfs {
namespace {

struct Arguments {
  std::string spec;
  std::vector<std::string> mounts;
  size_t processes = 16;
  size_t threads = 4;
  uint64_t seed = 0;
  int64_t read_timeout_ms = 0;
  int64_t grace_ms = 0;
  uint64_t pace_us = 0;
};

constexpr int kTick = 100;  // ms

std::string FirstLine(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// "S wait_on_page, D request_wait_answer, …": the threads of a process.
std::string ThreadsOf(pid_t pid) {
  std::string text;
  std::error_code error;
  const std::filesystem::path tasks = fmt::format("/proc/{}/task", pid);
  for (const auto& task : std::filesystem::directory_iterator(tasks, error)) {
    const std::string stat = FirstLine(task.path() / "stat");
    const size_t state = stat.rfind(')') + 2;
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ",
                        state < stat.size() ? stat[state] : '?',
                        FirstLine(task.path() / "wchan"));
  }
  return text;
}

class Supervisor {
 public:
  Supervisor(const Arguments& arguments, const ChaosSource& source,
             Board& board)
      : arguments_(arguments), source_(source), board_(board) {}

  int Run() {
    children_.resize(arguments_.processes);
    for (size_t i = 0; i < children_.size(); ++i) Start(i);
    WriteLine(R"({"event":"ready"})");
    while (!done_) {
      pollfd input{STDIN_FILENO, POLLIN, 0};
      if (::poll(&input, 1, kTick) > 0 && !TakeInput()) break;
      Reap(true);
      Watch();
      if (pausing_ && Rests()) {
        pausing_ = false;
        WriteLine(R"({"event":"reply","rests":true})");
      }
    }
    return Stop();
  }

 private:
  struct Child {
    pid_t pid = -1;
    uint64_t incarnation = 0;
    bool killed = false;  // on order
  };

  void Start(size_t number) {
    Child& child = children_[number];
    const pid_t parent = ::getpid();
    child.pid = ::fork();
    if (child.pid != 0) return;
    // Never without a driver.
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(1);
    ::close(STDIN_FILENO);
    RunReaders({&source_, &board_, arguments_.mounts,
                number * arguments_.threads, arguments_.threads, number,
                child.incarnation});
    ::_exit(0);
  }

  void Reap(bool replace) {
    int status = 0;
    for (pid_t pid = 0; (pid = ::waitpid(-1, &status, WNOHANG)) > 0;) {
      const auto it =
          std::find_if(children_.begin(), children_.end(),
                       [pid](const Child& child) { return child.pid == pid; });
      if (it == children_.end()) continue;
      const auto number = static_cast<size_t>(it - children_.begin());
      it->pid = -1;
      const bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
      if (replace && !killed) {
        ++crashes_;
        WriteLine(
            fmt::format(R"({{"event":"crash","who":"process {}","status":{}}})",
                        number, status));
      }
      for (size_t i = 0; i < arguments_.threads; ++i) {
        Slot& slot = board_.slots.at(number * arguments_.threads + i);
        slot.began = 0;
        slot.resting = false;
      }
      if (!replace) continue;
      ++it->incarnation;
      it->killed = false;
      Start(number);
    }
  }

  // Calls that are late and did not return.
  void Watch() {
    const int64_t now = MonotonicNow();
    for (size_t i = 0; i < children_.size() * arguments_.threads; ++i) {
      Slot& slot = board_.slots.at(i);
      const int64_t began = slot.began;
      if (began == 0 || slot.reported == began) continue;
      const Call call{slot.mount, began, began, now, false};
      if (now - began <= board_.Allowance(call)) continue;
      slot.reported = began;
      const Child& child = children_[i / arguments_.threads];
      board_.late.fetch_add(1);
      WriteLine(fmt::format(
          R"({{"event":"late","file":"{}","offset":{},"length":{},)"
          R"("mount":"{}","kind":"{}","pid":{},"took_ms":{},"seed":{},)"
          R"("what":"did not return yet","killed":{},"threads":"{}"}})",
          source_.files()[slot.file].path, slot.offset.load(),
          slot.length.load(), arguments_.mounts.at(slot.mount),
          CallName(static_cast<CallKind>(slot.kind.load())), child.pid,
          (now - began) / 1'000'000, board_.seed, child.killed,
          ThreadsOf(child.pid)));
    }
  }

  bool Rests() const {
    for (size_t i = 0; i < children_.size() * arguments_.threads; ++i) {
      if (!board_.slots.at(i).resting) return false;
    }
    return true;
  }

  // False at the end of input.
  bool TakeInput() {
    std::array<char, 4096> buffer{};
    const ssize_t n = ::read(STDIN_FILENO, buffer.data(), buffer.size());
    if (n <= 0) return false;
    text_.append(buffer.data(), static_cast<size_t>(n));
    for (size_t end = 0; (end = text_.find('\n')) != std::string::npos;) {
      std::istringstream words(text_.substr(0, end));
      text_.erase(0, end + 1);
      Obey(words);
    }
    return true;
  }

  void Obey(std::istringstream& words) {
    std::string order;
    words >> order;
    if (order == "window") {
      std::string name;
      uint32_t mounts = 0;
      words >> name >> mounts;
      for (size_t i = 0; i < kExcuses; ++i) {
        const auto excuse = static_cast<Excuse>(i);
        if (ExcuseName(excuse) != name) continue;
        const size_t number = board_.OpenWindow(excuse, mounts);
        WriteLine(fmt::format(R"({{"event":"reply","window":{}}})", number));
        return;
      }
    } else if (order == "close") {
      size_t number = SIZE_MAX;
      words >> number;
      board_.CloseWindow(number);
      return WriteLine(R"({"event":"reply"})");
    } else if (order == "signal") {
      size_t number = 0;
      int signal = 0;
      words >> number >> signal;
      const pid_t pid = children_.at(number).pid;
      if (pid > 0) ::kill(pid, signal);
      if (signal == SIGKILL) children_.at(number).killed = true;
      return WriteLine(R"({"event":"reply"})");
    } else if (order == "pause") {
      board_.paused = true;
      pausing_ = true;
      return;
    } else if (order == "resume") {
      for (Slot& slot : board_.slots) slot.resting = false;
      board_.paused = false;
      pausing_ = false;
      return WriteLine(R"({"event":"reply"})");
    } else if (order == "stats") {
      return WriteLine(Stats("reply"));
    } else if (order == "stop") {
      done_ = true;
      return;
    }
    WriteLine(R"({"event":"crash","who":"driver","status":"unknown order"})");
  }

  int Stop() {
    board_.ending = true;
    const int64_t limit = MonotonicNow() + board_.read_timeout + board_.grace;
    while (Running() > 0 && MonotonicNow() < limit) {
      ::poll(nullptr, 0, kTick);
      Reap(false);
      Watch();
    }
    for (const Child& child : children_) {
      if (child.pid > 0) ::kill(child.pid, SIGKILL);
    }
    // A process that SIGKILL does not end waits in the kernel.
    for (int i = 0; i < 50 && Running() > 0; ++i) {
      ::poll(nullptr, 0, kTick);
      Reap(false);
    }
    unkillable_ = Running();
    WriteLine(Stats("end"));
    return 0;
  }

  size_t Running() const {
    return static_cast<size_t>(
        std::count_if(children_.begin(), children_.end(),
                      [](const Child& child) { return child.pid > 0; }));
  }

  std::string Stats(std::string_view event) const {
    std::string calls;
    std::string bytes;
    for (size_t i = 0; i < kCallKinds; ++i) {
      const auto kind = CallName(static_cast<CallKind>(i));
      calls += fmt::format(R"({}"{}":{})", i == 0 ? "" : ",", kind,
                           board_.calls.at(i).load());
      bytes += fmt::format(R"({}"{}":{})", i == 0 ? "" : ",", kind,
                           board_.bytes.at(i).load());
    }
    std::string excused;
    for (size_t i = 0; i < kExcuses; ++i) {
      excused += fmt::format(R"({}"{}":{})", i == 0 ? "" : ",",
                             ExcuseName(static_cast<Excuse>(i)),
                             board_.excused.at(i).load());
    }
    std::string reads;
    for (size_t i = 0; i < arguments_.mounts.size(); ++i) {
      reads += fmt::format("{}{}", i == 0 ? "" : ",",
                           board_.mount_reads.at(i).load());
    }
    const Histogram& latency = board_.latency;
    return fmt::format(
        R"({{"event":"{}","calls":{{{}}},"bytes":{{{}}},"excused":{{{}}},)"
        R"("mount_reads":[{}],"bytes_checked":{},"wrong_reads":{},)"
        R"("wrong_bytes":{},"unexcused":{},"bus_errors":{},"interrupted":{},)"
        R"("short_reads":{},"late":{},"crashes":{},"unkillable":{},)"
        R"("p50_us":{},"p99_us":{},"p9999_us":{},"max_us":{}}})",
        event, calls, bytes, excused, reads, board_.bytes_checked.load(),
        board_.wrong_reads.load(), board_.wrong_bytes.load(),
        board_.unexcused.load(), board_.bus_errors.load(),
        board_.interrupted.load(), board_.short_reads.load(),
        board_.late.load(), crashes_, unkillable_, latency.Quantile(0.5) / 1000,
        latency.Quantile(0.99) / 1000, latency.Quantile(0.9999) / 1000,
        latency.most() / 1000);
  }

  const Arguments& arguments_;
  const ChaosSource& source_;
  Board& board_;
  std::vector<Child> children_;
  std::string text_;
  uint64_t crashes_ = 0;
  size_t unkillable_ = 0;
  bool pausing_ = false;
  bool done_ = false;
};

int Run(const Arguments& arguments) {
  if (arguments.processes * arguments.threads > Board::kMaxReaders ||
      arguments.mounts.empty() || arguments.mounts.size() > 8) {
    std::cerr << "weightfs-chaos-readers: too many readers, or no mounts\n";
    return 2;
  }
  const auto source = ChaosSource::Make(arguments.spec);
  if (!source) {
    std::cerr << "weightfs-chaos-readers: " << source.error().ToString()
              << '\n';
    return 2;
  }
  Board* const board = Board::Create();
  if (board == nullptr) return 2;
  board->seed = arguments.seed;
  board->read_timeout = arguments.read_timeout_ms * 1'000'000;
  board->grace = arguments.grace_ms * 1'000'000;
  board->pace_us = arguments.pace_us;
  ::signal(SIGINT, SIG_IGN);  // the terminal's goes to the driver
  ::signal(SIGPIPE, SIG_IGN);
  return Supervisor(arguments, *source, *board).Run();
}

}  // namespace
}  // namespace weightfs

// NOLINTNEXTLINE(bugprone-exception-escape): a test program may end so
int main(int argc, char** argv) {
  CLI::App app("Reads mounts of weightfs and compares every byte");
  weightfs::Arguments arguments;
  app.add_option("--spec", arguments.spec, "The hub's --generate")->required();
  app.add_option("--mount", arguments.mounts, "Mount points")->required();
  app.add_option("--processes", arguments.processes, "Reader processes");
  app.add_option("--threads", arguments.threads, "Readers of each");
  app.add_option("--seed", arguments.seed, "Of what they read");
  app.add_option("--read-timeout-ms", arguments.read_timeout_ms, "Deadline")
      ->required();
  app.add_option("--grace-ms", arguments.grace_ms, "And so much")->required();
  app.add_option("--pace-us", arguments.pace_us, "Mean rest between calls");
  CLI11_PARSE(app, argc, argv);
  return weightfs::Run(arguments);
}
