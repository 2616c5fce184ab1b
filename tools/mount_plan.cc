#include "tools/mount_plan.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "tools/child.h"
#include "tools/engine.h"
#include "tools/mount_registry.h"
#include "tools/mount_table.h"

namespace weightfs {
namespace {

constexpr std::chrono::milliseconds kProbeLimit{3'000};
constexpr std::chrono::milliseconds kFolderLimit{3'000};
// Crashed mounts on top of each other that are cleared away.
constexpr int kMaxCrashed = 16;

Result<> ClearCrashed(const MountEntry& entry) {
  if (entry.user.has_value() && *entry.user != ::getuid()) {
    return MakeError(Code::kDenied,
                     "{}: a crashed mount of user {} is there; they or root "
                     "can remove it with: umount -l {}",
                     entry.mountpoint, *entry.user, entry.mountpoint);
  }
  auto unmounted = Unmount(entry.mountpoint, UnmountMode::kLazy);
  if (unmounted.has_value()) return {};
  Error error = std::move(unmounted).error();
  return error.AddContext(fmt::format(
      "{}: a crashed mount is there and cannot be removed", entry.mountpoint));
}

// Leaves nothing of weightfs mounted there.
Result<> ClearMountpoint(MountPlan* plan) {
  const std::string& mountpoint = plan->mountpoint;
  for (int cleared = 0; cleared < kMaxCrashed; ++cleared) {
    ASSIGN_OR_RETURN(const auto table, ReadMountTable());
    const MountEntry* entry = FindMount(table, mountpoint);
    if (entry == nullptr || entry->type != kWeightfsType) return {};
    switch (ProbeMount(mountpoint, kProbeLimit)) {
      case MountState::kLive:
        return MakeError(Code::kIo,
                         "{}: weightfs is mounted there already; unmount it "
                         "with: weightfs umount {}",
                         mountpoint, mountpoint);
      case MountState::kHung:
        return MakeError(Code::kIo,
                         "{}: a weightfs mount is there and does not answer; "
                         "end it with: weightfs umount --force {}",
                         mountpoint, mountpoint);
      case MountState::kCrashed:
        break;
    }
    RETURN_IF_ERROR(ClearCrashed(*entry));
    plan->notes.push_back(fmt::format(
        "{}: removed the mount of a weightfs that had crashed", mountpoint));
  }
  return MakeError(Code::kIo, "{}: too many crashed mounts are there",
                   mountpoint);
}

Result<> CheckMountpoint(const std::string& mountpoint) {
  struct stat attr {};
  if (::stat(mountpoint.c_str(), &attr) != 0) {
    const int error = errno;
    if (error == ENOENT) {
      return MakeError(Code::kInvalid,
                       "{}: no such folder; make it with: mkdir -p {}",
                       mountpoint, mountpoint);
    }
    return MakeError(error == EACCES ? Code::kDenied : Code::kInvalid, "{}: {}",
                     mountpoint, std::generic_category().message(error));
  }
  if (!S_ISDIR(attr.st_mode)) {
    return MakeError(Code::kInvalid,
                     "{} is not a folder; give an empty one to mount at",
                     mountpoint);
  }
  if (mountpoint == "/") {
    return Error(Code::kInvalid, "/ cannot be the mountpoint; give a folder");
  }
  return {};
}

Result<> CheckSource(Source* source, const std::string& mountpoint) {
  if (source->kind != Source::Kind::kLocal) return {};
  ASSIGN_OR_RETURN(source->path, ResolveLocalSource(*source));
  if (IsWithin(source->path, mountpoint) ||
      IsWithin(mountpoint, source->path)) {
    return MakeError(Code::kInvalid,
                     "the source {} and the mountpoint {} lie in one another, "
                     "so that weightfs would read its own mount; mount "
                     "elsewhere",
                     source->path, mountpoint);
  }
  return {};
}

// Where the daemon logs to, if the user did not say.
Result<std::string> DefaultLogFile(const Options& options,
                                   const std::string& mountpoint) {
  const std::string& folder =
      options.state_dir.empty() ? options.cache_dir : options.state_dir;
  if (folder.empty()) {
    return Error(Code::kInvalid,
                 "neither HOME nor XDG_STATE_HOME says where to log to; give "
                 "--log-file");
  }
  return fmt::format("{}/log/{}.log", folder, MountSlug(mountpoint));
}

// The working folder changes, so relative paths in the environment would mean
// something else.
void MakeEnvironmentAbsolute() {
  for (const char* name : {"HF_HOME", "HF_TOKEN_PATH"}) {
    // NOLINTNEXTLINE(concurrency-mt-unsafe): one thread
    const char* value = std::getenv(name);
    if (value == nullptr || *value == '\0' || *value == '/' || *value == '~') {
      continue;
    }
    std::error_code failed;
    const auto path = std::filesystem::absolute(value, failed);
    // NOLINTNEXTLINE(concurrency-mt-unsafe): one thread
    if (!failed) ::setenv(name, path.c_str(), 1);
  }
}

}  // namespace

namespace {

// `path` with its links resolved, as far as it exists, and whether it lies in
// the mountpoint, also by another name of that folder (a bind mount).
struct Place {
  std::string resolved;
  bool in_mountpoint = false;
};
Place PlaceOf(const std::string& path, const std::string& mountpoint) {
  std::error_code failed;
  auto resolved = std::filesystem::weakly_canonical(path, failed);
  if (failed) resolved = path;
  struct stat top {};
  bool inside = IsWithin(resolved.string(), mountpoint);
  if (::stat(mountpoint.c_str(), &top) == 0) {
    for (auto above = resolved; !inside && above != above.root_path();
         above = above.parent_path()) {
      struct stat attr {};
      inside = ::stat(above.c_str(), &attr) == 0 && attr.st_dev == top.st_dev &&
               attr.st_ino == top.st_ino;
    }
  }
  return {resolved.string(), inside};
}

// In a child process, for what may lie on a disk that hangs: nothing if it
// does.
std::optional<Place> AskForPlace(const std::string& path,
                                 const std::string& mountpoint) {
  const auto output = RunInChild(kFolderLimit, [&](const auto& write) {
    const Place place = PlaceOf(path, mountpoint);
    write((place.in_mountpoint ? "1" : "0") + place.resolved);
  });
  if (!output.has_value() || output->text.empty()) return std::nullopt;
  return Place{output->text.substr(1), output->text[0] == '1'};
}

Error InMountpoint(const std::string& what, const std::string& path,
                   const std::string& mountpoint) {
  return MakeError(Code::kInvalid,
                   "{} {} lies in the mountpoint {}, so that weightfs would "
                   "read its own mount; choose another",
                   what, path, mountpoint);
}

// The cache folder: neither above nor below the mountpoint. One that does not
// answer is done without.
Result<> CheckCacheFolder(MountPlan* plan) {
  Options& options = plan->options;
  if (options.cache_dir.empty()) return {};
  const auto place = AskForPlace(options.cache_dir, plan->mountpoint);
  if (!place.has_value()) {
    if (options.offline) {
      return MakeError(Code::kUnavailable,
                       "offline, and the cache folder {} does not answer",
                       options.cache_dir);
    }
    plan->notes.push_back(fmt::format(
        "the cache folder {} does not answer; going on without a cache",
        options.cache_dir));
    if (IsWithin(options.run_dir, options.cache_dir)) options.run_dir.clear();
    options.cache_dir.clear();
    return {};
  }
  if (place->in_mountpoint) {
    return InMountpoint("the cache folder", options.cache_dir,
                        plan->mountpoint);
  }
  if (!IsWithin(plan->mountpoint, place->resolved)) return {};
  return MakeError(Code::kInvalid,
                   "the mountpoint {} lies in the cache folder {}, which is "
                   "weightfs's own; mount elsewhere",
                   plan->mountpoint, options.cache_dir);
}

}  // namespace

Result<> CheckOutside(const std::string& what, const std::string& path,
                      const std::string& mountpoint) {
  if (path.empty() || !PlaceOf(path, mountpoint).in_mountpoint) return {};
  return InMountpoint(what, path, mountpoint);
}

Result<MountPlan> PlanMount(const Options& options) {
  MountPlan plan;
  plan.options = options;
  ASSIGN_OR_RETURN(plan.mountpoint, ResolveMountpoint(options.mountpoint));
  RETURN_IF_ERROR(ClearMountpoint(&plan));
  RETURN_IF_ERROR(CheckMountpoint(plan.mountpoint));
  RETURN_IF_ERROR(CheckSource(&*plan.options.source, plan.mountpoint));
  plan.log_file = options.log_file;
  if (plan.log_file.empty() && !options.foreground) {
    ASSIGN_OR_RETURN(plan.log_file, DefaultLogFile(options, plan.mountpoint));
  }
  RETURN_IF_ERROR(CheckCacheFolder(&plan));
  const std::pair<const char*, const std::string&> used[] = {
      {"the folder of state files", plan.options.run_dir},
      {"the log file", plan.log_file},
      {"the token file", options.token_file},
  };
  for (const auto& [what, path] : used) {
    RETURN_IF_ERROR(CheckOutside(what, path, plan.mountpoint));
  }
  MakeEnvironmentAbsolute();
  return plan;
}

}  // namespace weightfs
