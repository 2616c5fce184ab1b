#include "tools/log_sink.h"

#include <fcntl.h>
#include <spdlog/details/log_msg_buffer.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <deque>
#include <filesystem>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "formats/base/clock.h"
#include "formats/base/mutex.h"
#include "formats/base/unique_fd.h"
#include "formats/base/worker_pool.h"
#include "tools/text.h"

namespace weightfs {
namespace {

constexpr off_t kMaxLogBytes = 16 << 20;

bool SameFile(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

int OpenToAppend(const std::string& file) {
  return ::open(file.c_str(),
                O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, 0600);
}

// Writes lines with one write(2) each, so that they survive a crash of ours and
// do not mix with those of others.
class FileSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  FileSink(std::string file, UniqueFd fd, bool redirects_stdio)
      : file_(std::move(file)),
        redirects_stdio_(redirects_stdio),
        fd_(std::move(fd)) {}

 private:
  using Steady = std::chrono::steady_clock;

  void sink_it_(const spdlog::details::log_msg& message) override {
    if (!file_.empty() && Steady::now() >= next_check_) FollowRename();
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    const int fd = fd_.valid() ? fd_.get() : STDERR_FILENO;
    size_t written = 0;
    while (written < line.size()) {
      const ssize_t n =
          ::write(fd, line.data() + written, line.size() - written);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return;  // a full disk costs log lines, nothing else
      written += static_cast<size_t>(n);
    }
  }
  void flush_() override {}

  void FollowRename() {
    next_check_ = Steady::now() + std::chrono::seconds(1);
    struct stat named {};
    struct stat open {};
    if (::fstat(fd_.get(), &open) == 0 && ::stat(file_.c_str(), &named) == 0 &&
        SameFile(named, open)) {
      return;
    }
    UniqueFd fd(OpenToAppend(file_));
    if (!fd.valid()) return;  // go on with the old one
    if (redirects_stdio_) {
      ::dup2(fd.get(), STDOUT_FILENO);
      ::dup2(fd.get(), STDERR_FILENO);
    }
    fd_ = std::move(fd);
  }

  const std::string file_;
  const bool redirects_stdio_;
  UniqueFd fd_;
  Steady::time_point next_check_ = Steady::now() + std::chrono::seconds(1);
};

struct Tee {
  Mutex mutex;
  std::function<void(std::string_view)> function GUARDED_BY(mutex);
};

// Where lines go: to the file, by a thread of its own, since its disk may stop
// answering. Who logs waits for the line to be written, but not for long, and
// not at all while an earlier line was not written in time; what is not written
// yet is kept, up to a limit.
class Output {
 public:
  explicit Output(std::shared_ptr<FileSink> sink)
      : sink_(std::move(sink)),
        writer_(StartThread("wfs-log", [this] { WriteAll(); })) {}
  ~Output() {
    {
      MutexLock lock(mutex_);
      stopping_ = true;
      changed_.NotifyAll();
    }
    writer_.join();
  }
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  void Write(spdlog::level::level_enum level, std::string_view line)
      EXCLUDES(mutex_) {
    // Here: the time and the thread are the caller's.
    const spdlog::details::log_msg message(
        "weightfs", level, spdlog::string_view_t(line.data(), line.size()));
    MutexLock lock(mutex_);
    if (waiting_bytes_ + line.size() > kMaxWaitingBytes) {
      ++lost_;
      return;
    }
    waiting_.emplace_back(message);
    waiting_bytes_ += line.size();
    const uint64_t number = ++taken_;
    changed_.NotifyAll();
    const auto deadline = Clock::System().Now() + kPatience;
    while (written_ < number && !late_) {
      if (!changed_.WaitUntil(mutex_, deadline) &&
          Clock::System().Now() >= deadline) {
        late_ = written_ < number;
      }
    }
  }

 private:
  static constexpr std::chrono::milliseconds kPatience{200};
  static constexpr size_t kMaxWaitingBytes = 1 << 20;

  void WriteAll() EXCLUDES(mutex_) {
    for (;;) {
      std::deque<spdlog::details::log_msg_buffer> lines;
      uint64_t lost = 0;
      {
        MutexLock lock(mutex_);
        while (waiting_.empty() && !stopping_) changed_.Wait(mutex_);
        if (waiting_.empty()) return;
        lines.swap(waiting_);
        waiting_bytes_ = 0;
        lost = std::exchange(lost_, 0);
      }
      for (const auto& line : lines) {
        sink_->log(line);
        MutexLock lock(mutex_);
        ++written_;
        late_ = late_ && written_ < taken_;
        changed_.NotifyAll();
      }
      if (lost == 0) continue;
      const std::string text =
          fmt::format("the log's disk did not take {} lines in time", lost);
      sink_->log({"weightfs", spdlog::level::warn, text});
    }
  }

  const std::shared_ptr<FileSink> sink_;
  Mutex mutex_;
  CondVar changed_;
  std::deque<spdlog::details::log_msg_buffer> waiting_ GUARDED_BY(mutex_);
  size_t waiting_bytes_ GUARDED_BY(mutex_) = 0;
  uint64_t taken_ GUARDED_BY(mutex_) = 0;
  uint64_t written_ GUARDED_BY(mutex_) = 0;
  uint64_t lost_ GUARDED_BY(mutex_) = 0;
  bool late_ GUARDED_BY(mutex_) = false;  // nobody waits until all is written
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::jthread writer_;
};

// The facade's sink is a plain function, so what it writes to is global. Never
// destroyed: threads may log until the process ends.
Tee& GlobalTee() {
  static Tee& tee = *new Tee;
  return tee;
}
std::shared_ptr<Output>& GlobalOutput() {
  static auto& output = *new std::shared_ptr<Output>;
  return output;
}

spdlog::level::level_enum SpdlogLevel(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

// Whatever a name, a server or libfuse put into it: one line, of plain text.
void WriteLine(LogLevel level, std::string_view text) {
  const std::string line = Printable(text);
  GlobalOutput()->Write(SpdlogLevel(level), line);
  if (level < LogLevel::kWarning) return;
  std::function<void(std::string_view)> tee;
  {
    MutexLock lock(GlobalTee().mutex);
    tee = GlobalTee().function;
  }
  if (tee) tee(line);
}

}  // namespace

std::string_view LogLevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "error";
}

Result<int> OpenLogFile(const std::string& file) {
  const std::filesystem::path folder =
      std::filesystem::path(file).parent_path();
  std::error_code failed;
  const mode_t before = ::umask(077);
  std::filesystem::create_directories(folder, failed);
  ::umask(before);
  struct stat attr {};
  if (::stat(file.c_str(), &attr) == 0 && S_ISREG(attr.st_mode) &&
      attr.st_size > kMaxLogBytes) {
    std::filesystem::rename(file, file + ".1", failed);
  }
  const int fd = OpenToAppend(file);
  if (fd >= 0) return fd;
  const int error = errno;
  return MakeError(error == EACCES ? Code::kDenied : Code::kIo,
                   "the log file {} cannot be written ({}); give another with "
                   "--log-file",
                   file, std::generic_category().message(error));
}

Result<> InstallLog(const LogConfig& config) {
  UniqueFd fd;
  if (!config.file.empty()) {
    ASSIGN_OR_RETURN(const int opened, OpenLogFile(config.file));
    fd.Reset(opened);
  }
  auto sink = std::make_shared<FileSink>(config.file, std::move(fd),
                                         config.redirects_stdio);
  sink->set_pattern(config.for_terminal ? "weightfs: %l: %v"
                                        : "%Y-%m-%d %H:%M:%S.%e%z %l [%t] %v");
  GlobalOutput() = std::make_shared<Output>(std::move(sink));
  SetLogSink(&WriteLine, config.least);
  return {};
}

void SetLogTee(std::function<void(std::string_view line)> tee) {
  MutexLock lock(GlobalTee().mutex);
  GlobalTee().function = std::move(tee);
}

}  // namespace weightfs
