#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cache/cache_audit.h"
#include "formats/base/clock.h"
#include "formats/base/mutex.h"
#include "formats/base/worker_pool.h"
#include "tools/child.h"
#include "tools/commands.h"
#include "tools/exit_codes.h"
#include "tools/log_sink.h"
#include "tools/output.h"
#include "tools/query.h"
#include "tools/text.h"

namespace weightfs {
namespace {

using State = CacheAudit::State;

// A disk that did not give 128 KiB, or open a file, for so long hangs.
constexpr std::chrono::seconds kBeatPatience{10};
constexpr std::chrono::milliseconds kProgressPause{200};

struct Checked {
  std::string path;
  CacheAudit::Verdict verdict;
};

// What the thread that uses the disk tells the one that prints. The first may
// hang for good; the second never waits for it.
class CheckJob {
 public:
  struct News {
    std::vector<Checked> files;
    bool ended = false;
    Result<> result;
  };

  // The disk's thread.
  void SetTotal(uint64_t bytes) { total_ = bytes; }
  void OnBytes(uint64_t bytes) {
    done_ += bytes;
    ++beats_;
  }
  void Add(Checked file) EXCLUDES(mutex_) {
    ++beats_;
    MutexLock lock(mutex_);
    news_.files.push_back(std::move(file));
  }
  void End(Result<> result) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    news_.ended = true;
    news_.result = std::move(result);
    wake_.NotifyAll();
  }

  // The printer's: what came since, at the end or after a pause.
  News Take() EXCLUDES(mutex_) {
    const auto until = Clock::System().Now() + kProgressPause;
    MutexLock lock(mutex_);
    while (!news_.ended && Clock::System().Now() < until) {
      wake_.WaitUntil(mutex_, until);
    }
    return std::exchange(news_, News());
  }
  uint64_t beats() const { return beats_; }
  uint64_t done() const { return done_; }
  uint64_t total() const { return total_; }

 private:
  std::atomic<uint64_t> total_{0};
  std::atomic<uint64_t> done_{0};
  std::atomic<uint64_t> beats_{0};
  Mutex mutex_;
  CondVar wake_;
  News news_ GUARDED_BY(mutex_);
};

struct Totals {
  uint64_t files = 0;
  uint64_t bytes = 0;
};

// Prints files as they come, progress to a terminal, and a summary.
class Printer {
 public:
  // `head`: members of the JSON object before the files.
  Printer(bool json, std::string head)
      : json_(json), terminal_(!json && ::isatty(STDERR_FILENO) == 1) {
    if (json_) Print(fmt::format("{{\n{}  \"files\": [", head));
  }

  void Add(const Checked& file) {
    const CacheAudit::Verdict& verdict = file.verdict;
    Totals& total = totals_[static_cast<size_t>(verdict.state)];
    ++total.files;
    total.bytes += verdict.size;
    absent_bytes_ +=
        verdict.state == State::kOk ? 0 : verdict.size - verdict.cached_bytes;
    Print(json_ ? JsonLine(file) : TextLine(file));
  }

  void Progress(uint64_t done, uint64_t total) {
    if (!terminal_ || total == 0) return;
    const auto percent =
        100.0 * static_cast<double>(done) / static_cast<double>(total);
    Note(fmt::format("\r\033[K{:.0f} % of {}", std::min(percent, 100.0),
                     HumanSize(total)));
    progress_ = true;
  }

  // `complete`: every file was checked.
  void End(bool complete) {
    if (json_) {
      std::string text = files() == 0 ? "],\n" : "\n  ],\n";
      for (size_t i = 0; i < totals_.size(); ++i) {
        text += fmt::format("  {}: {{\"files\": {}, \"bytes\": {}}},\n",
                            JsonQuote(AuditStateName(static_cast<State>(i))),
                            totals_[i].files, totals_[i].bytes);
      }
      text += fmt::format("  \"absent_bytes\": {},\n  \"complete\": {}\n}}\n",
                          absent_bytes_, complete);
      return Print(text);
    }
    std::string text =
        fmt::format("{} file{}{}", files(), files() == 1 ? "" : "s",
                    complete ? "" : " before it ended");
    for (size_t i = 0; i < totals_.size(); ++i) {
      text += fmt::format("{} {} {}", i == 0 ? ":" : ",", totals_[i].files,
                          AuditStateName(static_cast<State>(i)));
    }
    Print(fmt::format("{}; {} not cached\n", text, HumanSize(absent_bytes_)));
  }

  uint64_t files() const {
    uint64_t all = 0;
    for (const Totals& total : totals_) all += total.files;
    return all;
  }
  // 5 only where a whole file is wanted.
  int ExitCode(bool wants_all) const {
    const auto count = [&](State state) {
      return totals_[static_cast<size_t>(state)].files;
    };
    if (count(State::kWrong) > 0) return kExitCorrupt;
    const bool absent = count(State::kMissing) + count(State::kPartial) > 0;
    return wants_all && absent ? kExitUnavailable : kExitOk;
  }

 private:
  static std::string TextLine(const Checked& file) {
    const CacheAudit::Verdict& verdict = file.verdict;
    std::string line =
        fmt::format("{:<7}  {:>8}  {}", AuditStateName(verdict.state),
                    HumanSize(verdict.size), Printable(file.path));
    if (verdict.state == State::kPartial) {
      line += fmt::format("  ({} cached)", HumanSize(verdict.cached_bytes));
    } else if (!verdict.why.empty()) {
      line += fmt::format("  ({})", Printable(verdict.why));
    }
    return line + "\n";
  }

  std::string JsonLine(const Checked& file) const {
    const CacheAudit::Verdict& verdict = file.verdict;
    std::string line = fmt::format(
        "{}\n    {{\"state\": {}, \"path\": {}, \"id\": {}, \"size\": {}, "
        "\"cached\": {}",
        files() == 1 ? "" : ",", JsonQuote(AuditStateName(verdict.state)),
        JsonQuote(file.path), JsonQuote(verdict.id.ToString()), verdict.size,
        verdict.cached_bytes);
    if (!verdict.why.empty()) line += ", \"why\": " + JsonQuote(verdict.why);
    return line + "}";
  }

  void Print(std::string_view text) {
    if (std::exchange(progress_, false)) Note("\r\033[K");
    PrintOut(text);
  }
  static void Note(std::string_view text) {
    (void)WriteAll(STDERR_FILENO, std::as_bytes(std::span(text)));
  }

  const bool json_;
  const bool terminal_;
  bool progress_ = false;           // a line of it is on the terminal
  std::array<Totals, 4> totals_{};  // by State
  uint64_t absent_bytes_ = 0;
};

[[noreturn]] void LeaveWith(const Leave& leave, int code) {
  leave(code);
  std::abort();  // it does not return
}

// Runs `check` on a thread of its own, prints what it tells, and leaves without
// waiting for what may hang.
[[noreturn]] void CheckAndLeave(const Options& options, Printer& printer,
                                const Leave& leave,
                                std::function<Result<>(CheckJob&)> check) {
  const auto job = std::make_shared<CheckJob>();
  const std::jthread thread = StartThread(
      "wfs-check", [job, check = std::move(check)] { job->End(check(*job)); });
  uint64_t beats = 0;
  auto last_beat = Clock::System().Now();
  for (;;) {
    const CheckJob::News news = job->Take();
    for (const Checked& file : news.files) printer.Add(file);
    if (news.ended) {
      printer.End(news.result.has_value());
      LeaveWith(leave, news.result.has_value()
                           ? printer.ExitCode(!options.whole_cache)
                           : ReportError(news.result.error()));
    }
    const auto now = Clock::System().Now();
    if (std::exchange(beats, job->beats()) != beats) last_beat = now;
    if (now - last_beat > kBeatPatience) {
      printer.End(false);
      LeaveWith(
          leave,
          ReportError(MakeError(
              Code::kIo, "the disk of the cache {} does not answer; {} checked",
              options.cache_dir,
              printer.files() == 0 ? "nothing was" : "not all files were")));
    }
    printer.Progress(job->done(), job->total());
  }
}

Result<> CheckFiles(const Options& options, Engine& engine, CheckJob& job) {
  const std::vector<FileInfo>& files = engine.repo().snapshot().files;
  uint64_t total = 0;
  for (const FileInfo& file : files) total += file.size;
  job.SetTotal(total);
  ASSIGN_OR_RETURN(const auto audit,
                   CacheAudit::Open(options.cache_dir, [&job](uint64_t bytes) {
                     job.OnBytes(bytes);
                   }));
  // Files of the same bytes are one object.
  std::map<std::pair<std::string, uint64_t>, CacheAudit::Verdict> known;
  for (const FileInfo& file : files) {
    const std::pair key(file.id.ToString(), file.size);
    auto found = known.find(key);
    if (found == known.end()) {
      found =
          known
              .emplace(key, audit->CheckFile(
                                engine.repo().origin().cache_namespace(), file))
              .first;
    }
    job.Add({file.path, found->second});
  }
  return {};
}

Result<> CheckObjects(const Options& options, CheckJob& job) {
  ASSIGN_OR_RETURN(const auto audit,
                   CacheAudit::Open(options.cache_dir, [&job](uint64_t bytes) {
                     job.OnBytes(bytes);
                   }));
  const auto objects = audit->Objects();
  uint64_t total = 0;
  for (const auto& object : objects) total += object.size;
  job.SetTotal(total);
  for (const auto& object : objects) {
    CacheAudit::Verdict verdict = audit->CheckObject(object);
    if (verdict.state != State::kMissing) {
      job.Add({object.path, std::move(verdict)});
    }
  }
  return {};
}

Result<> CheckOptions(const Options& options) {
  if (options.source.has_value() == options.whole_cache) {
    return Error(Code::kInvalid,
                 "give what to verify: SOURCE, or --cache for everything that "
                 "is cached");
  }
  if (options.whole_cache && options.cache_dir.empty()) {
    return Error(Code::kInvalid,
                 "neither HOME nor WEIGHTFS_CACHE says where the cache is; "
                 "give --cache-dir");
  }
  if (options.source.has_value() &&
      options.source->kind == Source::Kind::kLocal) {
    return MakeError(Code::kUnsupported,
                     "{} is read where it is, and no list of hashes says what "
                     "its bytes must be; verify checks what is cached of a "
                     "repository, org/name",
                     options.source->text);
  }
  return {};
}

std::string JsonMember(std::string_view name, std::string_view value) {
  return fmt::format("  {}: {},\n", JsonQuote(name), JsonQuote(value));
}

[[noreturn]] void VerifyCache(const Options& options, const Leave& leave) {
  std::signal(SIGPIPE, SIG_IGN);
  const auto logs =
      InstallLog({.file = options.log_file,
                  .for_terminal = options.log_file.empty(),
                  .least = options.log_level.value_or(LogLevel::kError)});
  if (!logs.has_value()) LeaveWith(leave, ReportError(logs.error()));
  Printer printer(options.json, JsonMember("cache_folder", options.cache_dir));
  CheckAndLeave(options, printer, leave,
                [&](CheckJob& job) { return CheckObjects(options, job); });
}

[[noreturn]] void VerifySource(const Options& options, const Leave& leave) {
  Options without_limits = options;  // nothing is to be evicted
  without_limits.cache_size = UINT64_MAX;
  without_limits.cache_keep_free = 0;
  const auto engine = OpenForQuery(without_limits);
  if (!engine.has_value()) LeaveWith(leave, ReportError(engine.error()));
  if ((*engine)->cache() == nullptr) {
    LeaveWith(leave, ReportError(MakeError(
                         Code::kIo,  // the log says why
                         "there is nothing to verify without the cache {}",
                         options.cache_dir)));
  }
  const Snapshot& snapshot = (*engine)->repo().snapshot();
  Printer printer(options.json,
                  JsonMember("repo", snapshot.repo) +
                      JsonMember("commit", snapshot.commit) +
                      JsonMember("cache_folder", options.cache_dir));
  CheckAndLeave(options, printer, leave, [&](CheckJob& job) {
    return CheckFiles(options, **engine, job);
  });
}

}  // namespace

int RunVerify(const Options& options) {
  const auto valid = CheckOptions(options);
  if (!valid.has_value()) return ReportError(valid.error());
  // In a process of its own: threads that wait for a disk may outlive it.
  return RunAside([&](const Leave& leave) -> int {
    if (options.whole_cache) VerifyCache(options, leave);
    VerifySource(options, leave);
  });
}

}  // namespace weightfs
