#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/base/unique_fd.h"
#include "tools/child.h"
#include "tools/commands.h"
#include "tools/exit_codes.h"
#include "tools/mount_registry.h"
#include "tools/mount_table.h"
#include "tools/output.h"
#include "tools/text.h"

namespace weightfs {
namespace {

constexpr std::chrono::milliseconds kStatusLimit{5'000};

std::string LocalTime(int64_t seconds) {
  const auto time = static_cast<time_t>(seconds);
  std::tm parts{};
  std::array<char, 32> text{};
  if (::localtime_r(&time, &parts) == nullptr) return "?";
  std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M:%S", &parts);
  return text.data();
}

constexpr std::chrono::milliseconds kProbeLimit{1'000};

constexpr std::string_view kRunning = "running";
// Its last users, or another mount namespace, keep it.
constexpr std::string_view kDetached = "detached";

struct Mount {
  MountRecord record;  // pid 0: only the mountpoint is known
  std::string_view state = kRunning;
};

std::string_view StateOf(const std::string& mountpoint) {
  switch (ProbeMount(mountpoint, kProbeLimit)) {
    case MountState::kLive:
      return "unknown";  // of another cache folder
    case MountState::kCrashed:
      return "crashed";
    case MountState::kHung:
      return "hung";
  }
  return "unknown";
}

// The running mounts, and those of this user that are in no registry here.
Result<std::vector<Mount>> AllMounts(const Options& options) {
  std::vector<Mount> mounts;
  ASSIGN_OR_RETURN(const auto table, ReadMountTable());
  for (MountRecord& record : MountRegistry(options.run_dir).List()) {
    const MountEntry* entry = FindMount(table, record.mountpoint);
    const bool mounted = entry != nullptr && entry->type == kWeightfsType;
    // They come by mountpoint and age, and only the newest can be on top.
    if (!mounts.empty() &&
        mounts.back().record.mountpoint == record.mountpoint) {
      mounts.back().state = kDetached;
    }
    mounts.push_back({std::move(record), mounted ? kRunning : kDetached});
  }
  for (const MountEntry& entry : table) {
    if (entry.type != kWeightfsType || entry.user != ::getuid()) continue;
    const bool known =
        std::any_of(mounts.begin(), mounts.end(), [&](const Mount& mount) {
          return mount.record.mountpoint == entry.mountpoint;
        });
    if (known) continue;
    Mount mount;
    mount.record.mountpoint = entry.mountpoint;
    mount.state = StateOf(entry.mountpoint);
    mounts.push_back(std::move(mount));
  }
  return mounts;
}

std::string MountJson(const Mount& mount) {
  const MountRecord& record = mount.record;
  std::string json =
      fmt::format("{{\"mountpoint\": {}, \"state\": {}",
                  JsonQuote(record.mountpoint), JsonQuote(mount.state));
  if (record.pid != 0) {
    json += fmt::format(
        ", \"source\": {}, \"repo\": {}, \"commit\": {}, \"pid\": {}, "
        "\"started\": {}, \"log_file\": {}, \"cache_folder\": {}",
        JsonQuote(record.source), JsonQuote(record.repo),
        JsonQuote(record.commit), record.pid, record.started,
        JsonQuote(record.log_file), JsonQuote(record.cache_folder));
  }
  return json + "}";
}

std::vector<std::string> MountRow(const Mount& mount) {
  const MountRecord& record = mount.record;
  const std::string place = Printable(record.mountpoint);
  if (record.pid == 0) {
    return {place, std::string(mount.state), "-", "-", "-", "-", "-"};
  }
  return {place,
          std::string(mount.state),
          Printable(record.source),
          record.commit.substr(0, 12),
          std::to_string(record.pid),
          LocalTime(record.started),
          record.log_file.empty() ? "-" : Printable(record.log_file)};
}

int PrintAll(const Options& options) {
  const auto mounts = AllMounts(options);
  if (!mounts.has_value()) return ReportError(mounts.error());
  if (options.json) {
    std::string json = "[";
    for (const Mount& mount : *mounts) {
      json += (json.size() == 1 ? "\n  " : ",\n  ") + MountJson(mount);
    }
    return PrintOut(json + (json.size() == 1 ? "]\n" : "\n]\n"));
  }
  if (mounts->empty()) {
    PrintNote("nothing is mounted");
    return kExitOk;
  }
  std::vector<std::vector<std::string>> rows = {
      {"MOUNTPOINT", "STATE", "SOURCE", "COMMIT", "PID", "SINCE", "LOG"}};
  for (const Mount& mount : *mounts) rows.push_back(MountRow(mount));
  return PrintOut(RenderTable(rows));
}

// The daemon's own status, read through the mount: from a child process, since
// a mount that hangs would hang us.
Result<std::string> ReadStatus(const std::string& mountpoint) {
  ASSIGN_OR_RETURN(const auto table, ReadMountTable());
  const MountEntry* entry = FindMount(table, mountpoint);
  if (entry == nullptr || entry->type != kWeightfsType) {
    return MakeError(Code::kNotFound, "no weightfs is mounted at {}",
                     mountpoint);
  }
  ASSIGN_OR_RETURN(
      ChildOutput output, RunInChild(kStatusLimit, [&](const auto& write) {
        const std::string path = mountpoint + "/.weightfs/status.json";
        const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
        std::array<char, 4096> buffer{};
        ssize_t n = 0;
        while ((n = ::read(fd.get(), buffer.data(), buffer.size())) > 0) {
          write(std::string_view(buffer.data(), static_cast<size_t>(n)));
        }
      }));
  if (output.timed_out) {
    return MakeError(Code::kUnavailable,
                     "{}: the mount does not answer; end it with: weightfs "
                     "umount --force {}",
                     mountpoint, mountpoint);
  }
  if (output.text.empty()) {
    return MakeError(Code::kUnavailable,
                     "{}: the mount's daemon is gone or not yours; remove the "
                     "mount with: weightfs umount {}",
                     mountpoint, mountpoint);
  }
  if (!output.text.ends_with('\n')) output.text += '\n';
  return std::move(output.text);
}

// The indented JSON of a status as lines for people: "  pid  17".
std::string StatusText(std::string_view json) {
  std::vector<std::vector<std::string>> rows;
  while (!json.empty()) {
    std::string_view line = json.substr(0, json.find('\n'));
    json.remove_prefix(std::min(line.size() + 1, json.size()));
    const size_t indent = std::min(line.find('"'), line.size());
    const size_t colon = line.find("\": ");
    if (indent == line.size() || colon == line.npos) continue;
    std::string name(indent > 2 ? indent - 2 : 0, ' ');
    name += line.substr(indent + 1, colon - indent - 1);
    std::string_view value = line.substr(colon + 3);
    if (value.ends_with(',')) value.remove_suffix(1);
    if (value.size() >= 2 && value.front() == '"' && value.back() == '"') {
      value = value.substr(1, value.size() - 2);
    }
    rows.push_back({Printable(name), value == "{" ? "" : Printable(value)});
  }
  return RenderTable(rows);
}

}  // namespace

int RunStatus(const Options& options) {
  if (options.mountpoint.empty()) return PrintAll(options);
  const auto mountpoint = ResolveMountpoint(options.mountpoint);
  if (!mountpoint.has_value()) return ReportError(mountpoint.error());
  const auto status = ReadStatus(*mountpoint);
  if (!status.has_value()) return ReportError(status.error());
  return PrintOut(options.json ? *status : StatusText(*status));
}

}  // namespace weightfs
