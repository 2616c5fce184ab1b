#include "tests/bench/watch.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <fstream>
#include <iterator>
#include <mutex>
#include <sstream>

namespace weightfs {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kEvery{10};

std::string ReadText(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

double OwnCpu() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) +
           static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Fields 14 and 15 of stat; what comes before may hold spaces, up to a ")".
double CpuOf(pid_t pid) {
  const std::string text = ReadText(fmt::format("/proc/{}/stat", pid));
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return 0;
  std::istringstream fields(text.substr(name_end + 1));
  std::string skipped;
  for (int field = 3; field < 14; ++field) fields >> skipped;
  double user = 0;
  double system = 0;
  fields >> user >> system;
  return (user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

uint64_t MemoryOf(pid_t pid) {
  std::istringstream lines(ReadText(fmt::format("/proc/{}/status", pid)));
  uint64_t bytes = 0;
  for (std::string line; std::getline(lines, line);) {
    for (const char* name : {"RssAnon:", "RssShmem:"}) {
      if (!line.starts_with(name)) continue;
      std::istringstream value(line.substr(line.find(':') + 1));
      uint64_t kib = 0;
      value >> kib;
      bytes += kib << 10;
    }
  }
  return bytes;
}

}  // namespace

Watch::Watch(const std::vector<pid_t>& others) {
  for (const pid_t pid : others) {
    others_.push_back({pid, CpuOf(pid), MemoryOf(pid)});
  }
  own_cpu_ = OwnCpu();
  begin_ = Clock::now();
  if (others_.empty()) return;
  sampler_ = std::jthread([this](const std::stop_token& stop) {
    std::mutex mutex;
    std::condition_variable_any ended;
    std::unique_lock lock(mutex);
    while (!ended.wait_for(lock, stop, kEvery,
                           [&] { return stop.stop_requested(); })) {
      Sample();
    }
  });
}

void Watch::Sample() {
  for (Other& other : others_) {
    other.peak_memory = std::max(other.peak_memory, MemoryOf(other.pid));
  }
}

void Watch::Stop() {
  seconds_ = std::chrono::duration<double>(Clock::now() - begin_).count();
  own_cpu_ = OwnCpu() - own_cpu_;
  for (Other& other : others_) other.cpu = CpuOf(other.pid) - other.cpu;
  if (!sampler_.joinable()) return;
  sampler_.request_stop();
  sampler_.join();
  Sample();
}

std::string Watch::OthersJson() const {
  std::string text;
  for (const Other& other : others_) {
    text += fmt::format(R"({}{{"pid":{},"cpu":{:.3f},"peak_memory":{}}})",
                        text.empty() ? "" : ",", other.pid, other.cpu,
                        other.peak_memory);
  }
  return "[" + text + "]";
}

}  // namespace weightfs
