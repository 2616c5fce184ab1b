#include "tools/holders.h"

#include <fmt/format.h>
#include <unistd.h>

#include <charconv>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <system_error>

#include "tools/child.h"
#include "tools/mount_table.h"
#include "tools/text.h"

namespace weightfs {
namespace {

namespace fs = std::filesystem;

bool LinkIsWithin(const fs::path& link, const std::string& mountpoint) {
  std::error_code failed;
  const fs::path target = fs::read_symlink(link, failed);
  return !failed && IsWithin(target.string(), mountpoint);
}

bool HoldsFile(const fs::path& process, const std::string& mountpoint) {
  for (const char* link : {"cwd", "root", "exe"}) {
    if (LinkIsWithin(process / link, mountpoint)) return true;
  }
  std::error_code failed;
  fs::directory_iterator entry(process / "fd", failed);
  for (; !failed && entry != fs::directory_iterator();
       entry.increment(failed)) {
    if (LinkIsWithin(entry->path(), mountpoint)) return true;
  }
  return false;
}

bool HoldsMapping(const fs::path& process, const std::string& mountpoint) {
  std::ifstream maps(process / "maps");
  std::string line;
  while (std::getline(maps, line)) {
    // "start-end perms offset dev inode path"; no field before has a slash.
    const size_t slash = line.find('/');
    if (slash != line.npos &&
        IsWithin(std::string_view(line).substr(slash), mountpoint)) {
      return true;
    }
  }
  return false;
}

std::string CommandOf(const fs::path& process) {
  std::ifstream file(process / "comm");
  std::string name;
  std::getline(file, name);
  return Printable(name);
}

void Report(const std::string& mountpoint, size_t limit,
            const std::function<void(std::string_view)>& write) {
  size_t found = 0;
  // Mappings last: reading them waits for a process that is stuck in a fault.
  for (const auto& holds : {&HoldsFile, &HoldsMapping}) {
    std::error_code failed;
    fs::directory_iterator entry("/proc", failed);
    for (; !failed && entry != fs::directory_iterator() && found < limit;
         entry.increment(failed)) {
      const std::string pid = entry->path().filename().string();
      if (pid.find_first_not_of("0123456789") != pid.npos) continue;
      if (!holds(entry->path(), mountpoint)) continue;
      if (holds == &HoldsMapping && HoldsFile(entry->path(), mountpoint)) {
        continue;  // is in the list
      }
      write(fmt::format("{} {}\n", pid, CommandOf(entry->path())));
      ++found;
    }
  }
}

}  // namespace

std::vector<Holder> FindHolders(const std::string& mountpoint, size_t limit,
                                std::chrono::milliseconds time) {
  std::vector<Holder> holders;
  const auto output = RunInChild(
      time, [&](const auto& write) { Report(mountpoint, limit, write); });
  if (!output.has_value()) return holders;
  std::string_view text = output->text;
  size_t end = 0;
  while ((end = text.find('\n')) != text.npos) {
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end + 1);
    Holder holder;
    const auto parsed =
        std::from_chars(line.data(), line.data() + line.size(), holder.pid);
    if (parsed.ec != std::errc()) continue;
    const auto digits = static_cast<size_t>(parsed.ptr - line.data());
    holder.command = line.substr(std::min(digits + 1, line.size()));
    holders.push_back(std::move(holder));
  }
  return holders;
}

}  // namespace weightfs
