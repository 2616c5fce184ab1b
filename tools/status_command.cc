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

// The running mounts, and those of this user that are in no registry here (of
// another cache folder, or crashed): known by their mountpoint alone.
Result<std::vector<MountRecord>> RunningMounts(const Options& options) {
  std::vector<MountRecord> records = MountRegistry(options.run_dir).List();
  ASSIGN_OR_RETURN(const auto table, ReadMountTable());
  for (const MountEntry& entry : table) {
    if (entry.type != kWeightfsType || entry.user != ::getuid()) continue;
    bool known = false;
    for (const MountRecord& record : records) {
      known = known || record.mountpoint == entry.mountpoint;
    }
    if (known) continue;
    MountRecord record;
    record.mountpoint = entry.mountpoint;
    records.push_back(std::move(record));
  }
  return records;
}

std::string RecordJson(const MountRecord& record) {
  return fmt::format(
      "{{\"mountpoint\": {}, \"source\": {}, \"repo\": {}, \"commit\": {}, "
      "\"pid\": {}, \"started\": {}, \"log_file\": {}, \"cache_folder\": {}}}",
      JsonQuote(record.mountpoint), JsonQuote(record.source),
      JsonQuote(record.repo), JsonQuote(record.commit), record.pid,
      record.started, JsonQuote(record.log_file),
      JsonQuote(record.cache_folder));
}

int PrintAll(const Options& options) {
  const auto records = RunningMounts(options);
  if (!records.has_value()) return ReportError(records.error());
  if (options.json) {
    std::string json = "[";
    for (const MountRecord& record : *records) {
      json += (json.size() == 1 ? "\n  " : ",\n  ") + RecordJson(record);
    }
    return PrintOut(json + (json.size() == 1 ? "]\n" : "\n]\n"));
  }
  if (records->empty()) {
    PrintNote("nothing is mounted");
    return kExitOk;
  }
  std::vector<std::vector<std::string>> rows = {
      {"MOUNTPOINT", "SOURCE", "COMMIT", "PID", "SINCE", "LOG"}};
  for (const MountRecord& record : *records) {
    const bool known = record.pid != 0;
    const std::string log =
        record.log_file.empty() ? "-" : Printable(record.log_file);
    rows.push_back({Printable(record.mountpoint),
                    known ? Printable(record.source) : "?",
                    known ? record.commit.substr(0, 12) : "?",
                    known ? std::to_string(record.pid) : "?",
                    known ? LocalTime(record.started) : "?", log});
  }
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
                     "{}: the mount does not answer; detach it with: weightfs "
                     "umount --lazy {}",
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
