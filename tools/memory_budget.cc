#include "tools/memory_budget.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <optional>
#include <string_view>

namespace weightfs {
namespace {

std::optional<uint64_t> ReadNumber(const std::string& path) {
  std::ifstream file(path);
  uint64_t number = 0;
  if (file >> number) return number;  // not "max"
  return std::nullopt;
}

uint64_t MachineMemory(const std::string& root) {
  std::ifstream file(root + "/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    constexpr std::string_view kTotal = "MemTotal:";
    if (!line.starts_with(kTotal)) continue;
    const size_t digits = line.find_first_not_of(' ', kTotal.size());
    uint64_t kib = 0;
    if (digits != line.npos) {
      std::from_chars(line.data() + digits, line.data() + line.size(), kib);
    }
    if (kib > 0 && kib < UINT64_MAX / 1024) return kib * 1024;
  }
  return UINT64_MAX;
}

// The least of a group's and those above it, up to the top of the mount; a
// container may see its own group as the top.
uint64_t LeastOf(const std::string& mount, std::string group,
                 const std::string& name) {
  uint64_t least = UINT64_MAX;
  for (;;) {
    least =
        std::min(least, ReadNumber(fmt::format("{}{}/{}", mount, group, name))
                            .value_or(UINT64_MAX));
    if (group.empty()) return least;
    group.resize(std::min(group.rfind('/'), group.size()));
  }
}

uint64_t GroupLimit(const std::string& root) {
  std::ifstream file(root + "/proc/self/cgroup");
  uint64_t least = UINT64_MAX;
  // "0::/path" (version 2), "4:memory:/path"
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == line.npos || second == line.npos) continue;
    const std::string kinds = line.substr(first + 1, second - first - 1);
    std::string group = line.substr(second + 1);
    if (group == "/") group.clear();
    if (!group.empty() && group[0] != '/') continue;
    if (kinds.empty()) {
      least = std::min(least,
                       LeastOf(root + "/sys/fs/cgroup", group, "memory.max"));
    } else if (kinds == "memory") {
      least = std::min(least, LeastOf(root + "/sys/fs/cgroup/memory", group,
                                      "memory.limit_in_bytes"));
    }
  }
  return least;
}

}  // namespace

uint64_t MemoryBudget(const std::string& root) {
  const uint64_t memory = std::min(MachineMemory(root), GroupLimit(root));
  return std::clamp(memory / 20, kSmallestBudget, kLargestBudget);
}

}  // namespace weightfs
