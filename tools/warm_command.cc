#include <fmt/format.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cache/cache_space.h"
#include "cache/cache_survey.h"
#include "cache/snapshot_store.h"
#include "formats/base/checked.h"
#include "formats/base/clock.h"
#include "formats/base/mutex.h"
#include "formats/model_file.h"
#include "tools/child.h"
#include "tools/commands.h"
#include "tools/daemon.h"
#include "tools/exit_codes.h"
#include "tools/output.h"
#include "tools/query.h"
#include "tools/text.h"
#include "tools/warm_job.h"
#include "tools/warm_plan.h"
#include "tools/watchdog.h"
#include "tools/watched_work.h"

namespace weightfs {
namespace {

using std::chrono::milliseconds;

// From the end of the work, or a signal, to the process's end.
constexpr milliseconds kWarmEndLimit{2'500};
// A disk that did not open a file, or show a page of `meta`, for so long hangs.
constexpr std::chrono::seconds kCacheReadPatience{10};
// The rate is that of the last seconds.
constexpr std::chrono::seconds kRateSpan{5};

std::string Named(const Snapshot& snapshot) {
  return fmt::format("{}@{}", snapshot.repo, snapshot.commit.substr(0, 12));
}

// "0:36", "1:02:03".
std::string Duration(double seconds) {
  const auto all = static_cast<uint64_t>(std::llround(seconds));
  const uint64_t minutes = all / 60 % 60;
  if (all >= 3600) {
    return fmt::format("{}:{:02}:{:02}", all / 3600, minutes, all % 60);
  }
  return fmt::format("{}:{:02}", minutes, all % 60);
}

// Rounded down, so that 100 means all.
double Percent(uint64_t done, uint64_t total) {
  if (done >= total) return 100;
  const double tenths =
      1000.0 * static_cast<double>(done) / static_cast<double>(total);
  return static_cast<double>(static_cast<uint64_t>(tenths)) / 10;
}

// The line on the terminal: what is cached by now, how fast that grows, and how
// long the rest takes at that rate.
class ProgressLine {
 public:
  explicit ProgressLine(bool wanted)
      : terminal_(wanted && ::isatty(STDERR_FILENO) == 1) {}
  ~ProgressLine() {
    if (shown_) Note("\r\033[K");
  }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void Show(const WarmJob::Progress& progress) {
    if (!terminal_ || !progress.counted) return;
    const auto now = Clock::System().Now();
    // What was wrong, or evicted, is to come again.
    if (!samples_.empty() && progress.done < samples_.back().second) {
      samples_.clear();
    }
    samples_.emplace_back(now, progress.done);
    while (samples_.size() > 2 && now - samples_[1].first >= kRateSpan) {
      samples_.pop_front();
    }
    std::string line = fmt::format(
        "\r\033[K{} of {} ({:.1f} %)", HumanSize(progress.done),
        HumanSize(progress.total), Percent(progress.done, progress.total));
    const std::chrono::duration<double> span = now - samples_.front().first;
    const uint64_t came =
        progress.done - std::min(progress.done, samples_.front().second);
    if (progress.hashing) {
      line += ", checking hashes";
    } else if (came > 0 && span.count() > 0) {
      const double rate = static_cast<double>(came) / span.count();
      const auto rest = static_cast<double>(progress.total - progress.done);
      line +=
          fmt::format(", {}/s, {} left", HumanSize(static_cast<uint64_t>(rate)),
                      Duration(rest / rate));
    }
    Note(line);
    shown_ = true;
  }

 private:
  static void Note(std::string_view text) {
    (void)WriteAll(STDERR_FILENO, std::as_bytes(std::span(text)));
  }

  const bool terminal_;
  bool shown_ = false;
  std::deque<std::pair<Clock::Time, uint64_t>> samples_;
};

std::string JsonHead(const Snapshot& snapshot, const Options& options) {
  return fmt::format(
      "{{\n  \"repo\": {},\n  \"commit\": {},\n  \"cache_folder\": {}",
      JsonQuote(snapshot.repo), JsonQuote(snapshot.commit),
      JsonQuote(options.cache_dir));
}

// One use of the command: an open source, and what is done with it.
class WarmCommand {
 public:
  // `on_signal` is told of a signal before anything is waited for.
  WarmCommand(const Options& options, Engine& engine, const Leave& leave,
              std::function<void(int)> on_signal)
      : options_(options),
        engine_(engine),
        leave_(leave),
        on_signal_(std::move(on_signal)),
        snapshot_(engine.repo().snapshot()),
        name_space_(engine.repo().origin().cache_namespace()) {}

  int Fill();
  int Check();
  int Evict();

 private:
  // Runs `work`; ends the process where the disk hangs. The signal, or 0.
  int Run(std::function<Result<>()> work, const std::function<void()>& tick);
  Result<> OpenSurvey() {
    const DiskTime::Stay stay(disk_);
    ASSIGN_OR_RETURN(survey_, CacheSurvey::Open(options_.cache_dir));
    return {};
  }
  Result<> FillAll();
  Result<> CheckFits() const;
  Result<> CheckAll();
  // kUnavailable: indexes of the shown sets cannot be loaded from the cache.
  Result<> CheckHeaders();
  class CachedSource;
  bool IsCached(uint32_t file, uint64_t offset, uint64_t length);
  Result<> EvictAll();
  int EndFill(int signal, std::chrono::duration<double> took);
  std::string OrderText() const;
  // Null until there is a plan.
  WarmJob* Job() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return job_.get();
  }

  const Options& options_;
  Engine& engine_;
  const Leave& leave_;
  const std::function<void(int)> on_signal_;
  const Snapshot& snapshot_;
  const std::string& name_space_;
  std::unique_ptr<CacheSurvey> survey_;
  DiskTime disk_;
  WatchedWork work_;
  bool learned_ = false;
  WarmPlan plan_;
  uint64_t cached_ = 0;  // bytes, as Check found
  CacheSurvey::Dropped dropped_;

  Mutex mutex_;
  std::unique_ptr<WarmJob> job_ GUARDED_BY(mutex_);
};

int WarmCommand::Run(std::function<Result<>()> work,
                     const std::function<void()>& tick) {
  const auto signal =
      work_.Run({.work = std::move(work),
                 .tick = tick,
                 .stop =
                     [this](int ended_by) {
                       on_signal_(ended_by);
                       if (WarmJob* job = Job(); job != nullptr) job->Stop();
                       engine_.Stop();
                     },
                 .stuck =
                     [this] {
                       const WarmJob* job = Job();
                       return job != nullptr ? job->disk().age() : disk_.age();
                     }},
                kCacheReadPatience);
  if (signal) return *signal;
  leave_(ReportError(MakeError(Code::kIo,
                               "the disk of the cache {} does not answer",
                               options_.cache_dir)));
  std::abort();  // it does not return
}

// --- filling ---

int WarmCommand::Fill() {
  const auto begin = Clock::System().Now();
  int signal = 0;
  {
    ProgressLine line(!options_.json);
    signal = Run([this] { return FillAll(); },
                 [&] {
                   const WarmJob* job = Job();
                   if (job != nullptr) line.Show(job->progress());
                 });
  }
  return EndFill(signal, Clock::System().Now() - begin);
}

Result<> WarmCommand::FillAll() {
  RETURN_IF_ERROR(OpenSurvey());
  std::vector<FileRun> learned;
  if (options_.order != Options::Order::kFile) {
    const DiskTime::Stay stay(disk_);
    SnapshotStore store(options_.cache_dir);
    auto kept = store.LoadOrder(name_space_, snapshot_);
    if (kept.has_value()) learned = *std::move(kept);
  }
  learned_ = !learned.empty();
  ASSIGN_OR_RETURN(plan_, PlanWarm(engine_.repo(), options_.tensors, learned));
  RETURN_IF_ERROR(CheckFits());
  WarmJob* job = nullptr;
  {
    MutexLock lock(mutex_);
    job_ = std::make_unique<WarmJob>(engine_, plan_, *survey_,
                                     options_.read_timeout);
    job = job_.get();
  }
  return job->Run();
}

// Before anything is fetched, where it is certain that not all can stay.
Result<> WarmCommand::CheckFits() const {
  const CacheLimits limits = CacheLimitsOf(options_);
  const uint64_t most = LargestWholeObject(limits.max_bytes);
  if (plan_.bytes > most) {
    return MakeError(Code::kNoSpace,
                     "{} of {} do not fit: --cache-size {} leaves {} for them; "
                     "give more, or choose tensors with --tensors",
                     HumanSize(plan_.bytes), Named(snapshot_),
                     HumanSize(limits.max_bytes), HumanSize(most));
  }
  struct statvfs disk {};
  if (::statvfs(options_.cache_dir.c_str(), &disk) != 0) return {};
  const uint64_t all = uint64_t{disk.f_blocks} * disk.f_frsize;
  const uint64_t usable = all - std::min(all, limits.keep_free);
  if (plan_.bytes > usable) {
    return MakeError(Code::kNoSpace,
                     "{} of {} do not fit: the disk of the cache {} has {}; "
                     "give --cache-dir on a larger one, or choose tensors with "
                     "--tensors",
                     HumanSize(plan_.bytes), Named(snapshot_),
                     options_.cache_dir, HumanSize(usable));
  }
  return {};
}

std::string WarmCommand::OrderText() const {
  if (learned_) return "in the learned order";
  if (options_.order == Options::Order::kFile) return "in file order";
  return "in file order (none was learned yet)";
}

int WarmCommand::EndFill(int signal, std::chrono::duration<double> took) {
  const Result<>& result = work_.result();
  WarmJob::Progress progress;
  if (const WarmJob* job = Job(); job != nullptr) progress = job->progress();
  const bool complete = signal == 0 && result.has_value();
  const uint64_t fetched = engine_.fetcher().stats().bytes_fetched;
  int code = kExitOk;
  if (options_.json) {
    code = PrintOut(fmt::format(
        "{},\n  \"order\": \"{}\",\n  \"files\": {},\n  \"bytes\": {},\n  "
        "\"cached\": {},\n  \"fetched\": {},\n  "
        "\"seconds\": {:.3f},\n  \"complete\": {}\n}}\n",
        JsonHead(snapshot_, options_), learned_ ? "learned" : "file",
        plan_.files, plan_.bytes, progress.done, fetched, took.count(),
        complete));
  } else if (complete) {
    std::string text = fmt::format("{}: {} of {} file{} cached",
                                   Named(snapshot_), HumanSize(plan_.bytes),
                                   plan_.files, plan_.files == 1 ? "" : "s");
    if (fetched > 0) {
      const double rate = static_cast<double>(fetched) / took.count();
      text += fmt::format("; {} fetched in {:.1f} s ({}/s), {}",
                          HumanSize(fetched), took.count(),
                          HumanSize(static_cast<uint64_t>(rate)), OrderText());
    } else if (progress.done > progress.before) {
      text += "; others fetched what was missing";
    } else {
      text += "; nothing was missing";
    }
    code = PrintOut(text + "\n");
  }
  if (complete) return code;
  std::string rest;
  if (progress.counted) {
    rest = fmt::format("; {} of {} are cached, and the next run goes on there",
                       HumanSize(progress.done), HumanSize(progress.total));
  }
  if (signal != 0) {
    PrintNote("interrupted" + rest);
    return kExitSignal + signal;
  }
  return ReportError(
      Error(result.error().code(), result.error().message() + rest));
}

// --- checking ---

int WarmCommand::Check() {
  const int signal = Run([this] { return CheckAll(); }, [] {});
  if (signal != 0) return kExitSignal + signal;
  if (!work_.result().has_value()) {
    return ReportError(work_.result().error());
  }
  const bool complete = cached_ == plan_.bytes;
  const double percent = Percent(cached_, plan_.bytes);
  const std::string text =
      options_.json
          ? fmt::format(
                "{},\n  \"files\": {},\n  \"bytes\": {},\n  "
                "\"cached\": {},\n  \"percent\": {:.1f},\n  "
                "\"complete\": {}\n}}\n",
                JsonHead(snapshot_, options_), plan_.files, plan_.bytes,
                cached_, percent, complete)
          : fmt::format("{}: {} of {} cached ({:.1f} %), of {} file{}\n",
                        Named(snapshot_), HumanSize(cached_),
                        HumanSize(plan_.bytes), percent, plan_.files,
                        plan_.files == 1 ? "" : "s");
  const int printed = PrintOut(text);
  if (printed != kExitOk) return printed;
  return complete ? kExitOk : kExitUnavailable;
}

Result<> WarmCommand::CheckAll() {
  RETURN_IF_ERROR(OpenSurvey());
  if (!options_.tensors.empty()) RETURN_IF_ERROR(CheckHeaders());
  ASSIGN_OR_RETURN(plan_, PlanWarm(engine_.repo(), options_.tensors, {}));
  std::optional<uint32_t> looked;
  CacheSurvey::Found found;
  std::vector<FileRun> runs = plan_.runs;
  std::stable_sort(
      runs.begin(), runs.end(),
      [](const FileRun& a, const FileRun& b) { return a.file < b.file; });
  for (const FileRun& run : runs) {
    if (looked != run.file) {
      const DiskTime::Stay stay(disk_);
      found = survey_->Look(name_space_, snapshot_.files[run.file]);
      looked = run.file;
    }
    for (uint64_t at = run.offset; at < run.end();) {
      const uint64_t g = at / kGranuleSize;
      const uint64_t next = std::min((g + 1) * kGranuleSize, run.end());
      if (g < found.granules.size() && found.granules[g]) cached_ += next - at;
      at = next;
    }
  }
  return {};
}

bool WarmCommand::IsCached(uint32_t file, uint64_t offset, uint64_t length) {
  const DiskTime::Stay stay(disk_);
  const FileInfo& info = snapshot_.files[file];
  const auto found = survey_->Look(name_space_, info);
  for (uint64_t g = offset / kGranuleSize; g * kGranuleSize < offset + length;
       ++g) {
    if (g >= found.granules.size() || !found.granules[g]) return false;
  }
  return true;
}

// A file as far as it is cached, for who must not fetch.
class WarmCommand::CachedSource final : public ByteSource {
 public:
  CachedSource(WarmCommand& command, uint32_t file)
      : command_(command),
        file_(file),
        source_(command.engine_.repo().OpenFile(file), kCacheReadPatience) {}

  uint64_t size() const override { return source_.size(); }
  const std::string& name() const override { return source_.name(); }
  Result<> ReadAt(uint64_t offset, std::span<std::byte> out) override {
    if (!RangeFits(offset, out.size(), size())) {
      return source_.ReadAt(offset, out);
    }
    if (!command_.IsCached(file_, offset, out.size())) {
      absent_ = true;
      return MakeError(Code::kUnavailable, "{} is not cached", name());
    }
    return source_.ReadAt(offset, out);
  }
  // Whether something was read that is not there.
  bool absent() const { return absent_; }

 private:
  WarmCommand& command_;
  const uint32_t file_;
  ObjectSource source_;
  std::atomic<bool> absent_{false};
};

Result<> WarmCommand::CheckHeaders() {
  const Catalog& catalog = engine_.repo().catalog();
  const auto absent = [this](uint32_t file) {
    return MakeError(Code::kUnavailable,
                     "{}: its header is not cached, so nothing says which "
                     "tensors match; `weightfs warm` without --check fetches "
                     "it",
                     snapshot_.files[file].path);
  };
  for (const uint32_t ordinal : ShownSets(catalog)) {
    const WeightSet& set = catalog.sets()[ordinal];
    if (set.index_file &&
        !IsCached(*set.index_file, 0, snapshot_.files[*set.index_file].size)) {
      return absent(*set.index_file);
    }
    for (const uint32_t file : set.files) {
      // As who loads the index reads them; what is wrong with it is told then.
      CachedSource source(*this, file);
      static_cast<void>(ReadTensors(source));
      if (source.absent()) return absent(file);
    }
  }
  return {};
}

// --- dropping ---

int WarmCommand::Evict() {
  const int signal = Run([this] { return EvictAll(); }, [] {});
  if (signal == 0 && !work_.result().has_value()) {
    return ReportError(work_.result().error());
  }
  std::string text;
  if (options_.json) {
    text = fmt::format("{},\n  \"freed\": {},\n  \"kept\": {}\n}}\n",
                       JsonHead(snapshot_, options_), dropped_.freed,
                       dropped_.kept);
  } else {
    text = fmt::format("{}: {} freed", Named(snapshot_),
                       HumanSize(dropped_.freed));
    if (dropped_.kept > 0) {
      text +=
          fmt::format("; {} are in use, and stay", HumanSize(dropped_.kept));
    }
    text += "\n";
  }
  const int printed = PrintOut(text);
  if (signal != 0) return kExitSignal + signal;
  if (printed != kExitOk || dropped_.why.empty()) return printed;
  return ReportError(
      MakeError(Code::kIo, "not all could be dropped: {}", dropped_.why));
}

Result<> WarmCommand::EvictAll() {
  RETURN_IF_ERROR(OpenSurvey());
  std::set<std::pair<std::string, uint64_t>> done;
  for (const FileInfo& file : snapshot_.files) {
    if (!done.emplace(file.id.ToString(), file.size).second) continue;
    const DiskTime::Stay stay(disk_);
    const auto dropped = survey_->Drop(name_space_, file);
    dropped_.freed += dropped.freed;
    dropped_.kept += dropped.kept;
    if (!dropped.why.empty()) dropped_.why = dropped.why;
  }
  return {};
}

int RunOn(const Options& options, Engine& engine, const Leave& leave,
          std::function<void(int)> on_signal) {
  if (engine.cache() == nullptr) {
    return ReportError(
        MakeError(Code::kIo, "there is nothing to warm without the cache {}",
                  options.cache_dir));  // the log says why
  }
  WarmCommand command(options, engine, leave, std::move(on_signal));
  if (options.check) return command.Check();
  if (options.evict) return command.Evict();
  return command.Fill();
}

int Warm(const Options& options, const Leave& leave) {
  PrepareProcess();
  std::atomic<int> code = kExitFailure;
  ShutdownWatchdog watchdog(kWarmEndLimit, [&] { leave(code); });
  const auto engine = OpenForQuery(options);
  if (engine.has_value()) {
    code = RunOn(options, **engine, leave, [&](int signal) {
      code = kExitSignal + signal;
      watchdog.Arm();
    });
  } else {
    code = ReportError(engine.error());
  }
  // A disk that hangs holds what goes with the engine.
  watchdog.Arm();
  return code;
}

}  // namespace

int RunWarm(const Options& options) {
  if (options.source->kind == Source::Kind::kLocal) {
    return ReportError(MakeError(
        Code::kUnsupported,
        "{} is read where it is and never cached; warm takes a repository, "
        "org/name",
        options.source->text));
  }
  Options used = options;
  if (options.check || options.evict) {
    used.cache_size = UINT64_MAX;  // only what was asked for is dropped
    used.cache_keep_free = 0;
  }
  // In a process of its own: threads that wait for a disk may outlive it.
  return RunAside([&](const Leave& leave) { return Warm(used, leave); },
                  AsideSignals::kForwarded);
}

}  // namespace weightfs
