#include <pthread.h>
#include <sys/mount.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "cache/patient_calls.h"
#include "formats/base/log.h"
#include "formats/base/mutex.h"
#include "formats/base/unique_fd.h"
#include "formats/base/worker_pool.h"
#include "fs/describe.h"
#include "fs/fuse/session.h"
#include "fs/vfs.h"
#include "tools/commands.h"
#include "tools/daemon.h"
#include "tools/engine.h"
#include "tools/exit_codes.h"
#include "tools/log_sink.h"
#include "tools/mount_plan.h"
#include "tools/mount_registry.h"
#include "tools/mount_table.h"
#include "tools/order_keeper.h"
#include "tools/unmounter.h"
#include "tools/watchdog.h"

namespace weightfs {
namespace {

// From the signal, or an unmount from outside, to the end of the process; 5 s
// are promised.
constexpr std::chrono::milliseconds kShutdownLimit{3'500};
constexpr std::chrono::milliseconds kUnmountLimit{1'000};

// The session, for the watchdog's thread.
class LiveSession {
 public:
  void Set(FuseSession* session) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    session_ = session;
  }
  // True if it is still mounted.
  bool GiveUp() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return session_ != nullptr && session_->GiveUp();
  }

 private:
  Mutex mutex_;
  FuseSession* session_ GUARDED_BY(mutex_) = nullptr;
};

int64_t UnixSeconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// What .weightfs/status.json says. Thread-safe.
class MountStatus {
 public:
  MountStatus(const MountPlan& plan, Engine& engine) : engine_(engine) {
    report_.version = WEIGHTFS_VERSION;
    report_.source = plan.options.source->text;
    report_.mountpoint = plan.mountpoint;
    report_.pid = ::getpid();
    report_.started = UnixSeconds();
    report_.log_file = plan.log_file;
    report_.token_source = engine.TokenSource();
    report_.offline = plan.options.offline;
    report_.allow_other = plan.options.allow_other;
    report_.strict = plan.options.strict;
    if (engine.cache() != nullptr) {
      report_.cache_folder = engine.cache()->folder();
    }
  }

  void SetFuse(const FuseSettings& settings) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    report_.fuse = settings;
  }

  // `session` must outlive what asks for the status.
  void SetSession(FuseSession& session) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    session_ = &session;
  }

  std::string Render() EXCLUDES(mutex_) {
    StatusReport report;
    FuseSession* session = nullptr;
    {
      MutexLock lock(mutex_);
      report = report_;
      session = session_;
    }
    report.fetcher = engine_.fetcher().stats();
    if (engine_.cache() != nullptr) report.cache = engine_.cache()->stats();
    report.verifier = engine_.verifier().stats();
    if (session != nullptr) {
      report.requests = session->requests();
      report.passthrough = session->passthrough();
    }
    report.open_files = CountOpenFiles();
    return RenderStatusJson(engine_.repo(), report);
  }

  MountRecord Record() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    const Snapshot& snapshot = engine_.repo().snapshot();
    MountRecord record;
    record.pid = ::getpid();
    record.start_time = ProcessStartTime(record.pid).value_or(0);
    record.machine = MachineId();
    record.started = report_.started;
    record.mountpoint = report_.mountpoint;
    record.source = report_.source;
    record.repo = snapshot.repo;
    record.commit = snapshot.commit;
    record.log_file = report_.log_file;
    record.cache_folder = report_.cache_folder;
    return record;
  }

 private:
  Engine& engine_;
  Mutex mutex_;
  StatusReport report_ GUARDED_BY(mutex_);
  FuseSession* session_ GUARDED_BY(mutex_) = nullptr;
};

// The mount's file in the registry, as long as it serves. It may lie on a disk
// that hangs, and the mount must not wait for that.
class Registration {
 public:
  Registration(std::string folder, MountRecord record)
      : entry_(std::make_shared<Entry>(
            Entry{MountRegistry(std::move(folder)), std::move(record)})) {
    auto added = std::make_shared<Result<>>();
    const bool ended = calls_.Run([entry = entry_, added] {
      *added = entry->registry.Add(entry->record);
    });
    if (ended && added->has_value()) return;
    LogWarning("`weightfs status` will not list this mount: {}",
               ended ? added->error().ToString() : "the disk does not answer");
  }
  ~Registration() {
    calls_.Run([entry = entry_] { entry->registry.Remove(entry->record); });
  }
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;

 private:
  struct Entry {
    MountRegistry registry;
    MountRecord record;
  };
  const std::shared_ptr<Entry> entry_;
  PatientCalls calls_{"wfs-registry", 1, std::chrono::seconds(2)};
};

Result<> CheckSharing(const Options& options, const Snapshot& snapshot) {
  if (!options.allow_other || options.share_private || !snapshot.restricted) {
    return {};
  }
  const bool is_local = options.source->kind == Source::Kind::kLocal;
  return MakeError(Code::kDenied,
                   "{} {}, and --allow-other would show it to every user of "
                   "this machine; add --share-private if that is right",
                   snapshot.repo,
                   is_local ? "holds files that not every user may read"
                            : "is private or gated");
}

std::string ReadyLine(const MountPlan& plan, const Snapshot& snapshot) {
  std::string what = snapshot.repo;
  if (plan.options.source->kind == Source::Kind::kHub) {
    what += "@" + snapshot.commit.substr(0, 12);
  }
  return fmt::format("mounted {} at {} (log: {})", what, plan.mountpoint,
                     plan.log_file.empty() ? "standard error" : plan.log_file);
}

Result<> ServeUntilUnmounted(const MountPlan& plan, Reporter& reporter,
                             ShutdownWatchdog& watchdog, LiveSession& live,
                             Unmounter* unmounter) {
  const Options& options = plan.options;
  ASSIGN_OR_RETURN(const auto engine, Engine::Open(options));
  const Snapshot& snapshot = engine->repo().snapshot();
  RETURN_IF_ERROR(CheckSharing(options, snapshot));
  const std::string token_source = engine->TokenSource();
  if (token_source.starts_with('/')) {
    RETURN_IF_ERROR(
        CheckOutside("the token file", token_source, plan.mountpoint));
  }
  MountStatus status(plan, *engine);
  Vfs vfs(
      engine->repo(), engine->pool(), engine->timers(),
      {.read_timeout = options.read_timeout,
       .metadata_timeout = options.metadata_timeout,
       // What is fetched ahead must not drive out what it was fetched for.
       .readahead = std::min(VfsOptions().readahead, options.cache_size / 8)});
  vfs.SetStatus([&] { return status.Render(); });
  std::optional<OrderKeeper> order;
  FuseOptions fuse;
  fuse.mountpoint = plan.mountpoint;
  fuse.allow_other = options.allow_other;
  fuse.read_ahead_kb = options.read_ahead_kb;
  if (engine->cache() == nullptr) {
    fuse.no_passthrough = options.source->kind == Source::Kind::kLocal
                              ? "a local folder's files are not cached"
                              : "there is no cache";
  } else if (!engine->cache_is_local()) {
    fuse.no_passthrough =
        "the cache's file system is not known to be a local disk's (overlayfs, "
        "NFS, FUSE); put --cache-dir on another";
  }
  // Root needs no program for it, and libfuse starts one.
  fuse.unmount = [&] {
    return unmounter != nullptr ? unmounter->Unmount(kUnmountLimit)
                                : ::umount2(plan.mountpoint.c_str(),
                                            MNT_DETACH | UMOUNT_NOFOLLOW) == 0;
  };
  fuse.disconnected = [&] { watchdog.Arm(); };
  fuse.times.read = options.read_timeout;
  fuse.times.metadata = options.metadata_timeout;
  ASSIGN_OR_RETURN(const auto session, FuseSession::Mount(vfs, fuse));
  status.SetSession(*session);
  live.Set(session.get());
  const auto forget = std::unique_ptr<LiveSession, void (*)(LiveSession*)>(
      &live, [](LiveSession* gone) { gone->Set(nullptr); });
  Result<> served;
  {
    const Registration registration(options.run_dir, status.Record());
    // Read strictly, no page of it was ever given; and to drop a page means to
    // wait for who reads it, who may wait for this very thread.
    if (!options.strict) {
      engine->repo().SetOnWrong([&](uint32_t file) {
        for (const uint64_t node : vfs.NodesOfFile(file)) {
          session->Invalidate(node);
        }
      });
    }
    // That would fetch all weights; whoever looks for tensors does it.
    if (!options.strict) engine->repo().LoadShownIndexes();
    // Nor is a strict mount's file fetched before somebody looks.
    if (!options.strict && engine->cache() != nullptr) {
      order.emplace(engine->cache()->folder(), engine->repo(), vfs);
    }
    std::optional<ArmOnSignals> arm_on_signals;
    served = session->Serve([&](const FuseSettings& settings) {
      status.SetFuse(settings);
      arm_on_signals.emplace(watchdog);
      const std::string line = ReadyLine(plan, snapshot);
      LogInfo("{}", line);
      SetLogTee(nullptr);
      reporter.Ready(line);
    });
    watchdog.Arm();
    NotifyServiceManager("STOPPING=1");
  }
  LogInfo("no longer mounted at {}", plan.mountpoint);
  vfs.Shutdown();
  if (order) order->Finish();
  engine->Stop();
  return served;
}

[[noreturn]] void EndHard(const std::string& mountpoint, LiveSession& live,
                          Unmounter* unmounter) {
  // A dead mount would be left; and another's mount there is not ours.
  if (live.GiveUp()) {
    if (unmounter != nullptr) {
      unmounter->Unmount(kUnmountLimit);
    } else {
      (void)Unmount(mountpoint, UnmountMode::kLazy);
    }
  }
  LogError("shutting down takes too long; ending at once");
  ::_exit(kExitFailure);
}

int Serve(const MountPlan& plan, Reporter& reporter, Unmounter* unmounter) {
  const auto fail = [&](const Error& error) {
    // Without a log file the reporter's line is the log's.
    if (!plan.log_file.empty()) LogError("{}", error.ToString());
    const int code = ExitCodeFor(error.code());
    reporter.Fail(code, error.message());
    return code;
  };
  PrepareProcess();
  const bool in_background = !plan.options.foreground;
  const auto installed =
      InstallLog({.file = plan.log_file,
                  .redirects_stdio = in_background,
                  .least = plan.options.log_level.value_or(LogLevel::kInfo)});
  if (!installed.has_value()) return fail(installed.error());
  LogInfo("weightfs {} starts: source={} mountpoint={} pid={}",
          WEIGHTFS_VERSION, plan.options.source->text, plan.mountpoint,
          ::getpid());
  SetLogTee([&](std::string_view line) { reporter.Warn(line); });
  for (const std::string& note : plan.notes) LogWarning("{}", note);
  LiveSession live;
  ShutdownWatchdog watchdog(kShutdownLimit,
                            [&] { EndHard(plan.mountpoint, live, unmounter); });
  const auto served =
      ServeUntilUnmounted(plan, reporter, watchdog, live, unmounter);
  SetLogTee(nullptr);
  return served.has_value() ? static_cast<int>(kExitOk) : fail(served.error());
}

// Serves on a thread of its own, which gets the signals. The main thread does
// nothing: a thread that is stuck in a call that the kernel cannot end outlives
// the process's end, and if it were the main one, so would the process.
int ServeAside(const MountPlan& plan, Reporter& reporter) {
  // Root needs no program to unmount.
  const auto unmounter =
      ::geteuid() != 0 ? Unmounter::Start(plan.mountpoint) : nullptr;
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  int code = kExitFailure;
  StartThread("wfs-main", [&] {
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    code = Serve(plan, reporter, unmounter.get());
  }).join();
  return code;
}

}  // namespace

int RunMount(const Options& options) {
  const auto plan = PlanMount(options);
  if (!plan.has_value()) return ReportError(plan.error());
  const Body body = [&](Reporter& reporter) {
    return ServeAside(*plan, reporter);
  };
  if (options.foreground) return RunInForeground(body);
  auto log = OpenLogFile(plan->log_file);
  if (!log.has_value()) return ReportError(log.error());
  const UniqueFd log_fd(*log);
  return RunInBackground(log_fd.get(), plan->log_file, body);
}

}  // namespace weightfs
