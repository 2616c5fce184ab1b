#include "tools/mount_table.h"

#include <sys/mount.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <system_error>

#include "tools/child.h"
#include "tools/text.h"

namespace weightfs {
namespace {

constexpr std::chrono::milliseconds kFusermountLimit{10'000};
constexpr int kMaxLinks = 40;  // as in Linux

// "\040" is a space: the kernel writes space, tab, newline and backslash so.
std::string UnescapeOctal(std::string_view field) {
  std::string out;
  for (size_t i = 0; i < field.size(); ++i) {
    unsigned value = 0;
    if (field[i] == '\\' && i + 3 < field.size()) {
      const char* digits = field.data() + i + 1;
      const auto [end, failed] = std::from_chars(digits, digits + 3, value, 8);
      if (failed == std::errc() && end == digits + 3 && value < 256) {
        out += static_cast<char>(value);
        i += 3;
        continue;
      }
    }
    out += field[i];
  }
  return out;
}

std::vector<std::string_view> SplitAt(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == text.npos) return parts;
    text.remove_prefix(end + 1);
  }
}

std::optional<uid_t> UserOf(std::string_view options) {
  for (const std::string_view option : SplitAt(options, ',')) {
    if (!option.starts_with("user_id=")) continue;
    const std::string_view digits = option.substr(8);
    uid_t user = 0;
    const auto [end, failed] =
        std::from_chars(digits.data(), digits.data() + digits.size(), user);
    if (failed == std::errc() && end == digits.data() + digits.size()) {
      return user;
    }
  }
  return std::nullopt;
}

// "36 35 98:0 /root /mountpoint options [optional…] - type source options"
std::optional<MountEntry> ParseLine(std::string_view line) {
  const std::vector<std::string_view> fields = SplitAt(line, ' ');
  size_t dash = 6;
  while (dash < fields.size() && fields[dash] != "-") ++dash;
  if (dash + 1 >= fields.size()) return std::nullopt;
  MountEntry entry;
  entry.mountpoint = UnescapeOctal(fields[4]);
  entry.type = UnescapeOctal(fields[dash + 1]);
  if (dash + 3 < fields.size()) entry.user = UserOf(fields[dash + 3]);
  return entry;
}

// `path`, which is absolute, with the links in all but its last component
// resolved.
Result<std::string> ResolveButLast(std::filesystem::path path) {
  while (path.has_relative_path() && path.filename().empty()) {
    path = path.parent_path();  // "x/" is x
  }
  const std::string last = path.filename().string();
  const bool by_name = !last.empty() && last != "." && last != "..";
  const std::string to_resolve =
      by_name ? path.parent_path().string() : path.string();
  const std::unique_ptr<char, decltype(&std::free)> resolved(
      ::realpath(to_resolve.c_str(), nullptr), &std::free);
  if (resolved == nullptr) {
    const int error = errno;
    return MakeError(error == EACCES ? Code::kDenied : Code::kInvalid, "{}: {}",
                     to_resolve, std::generic_category().message(error));
  }
  std::string result = resolved.get();
  if (!by_name) return result;
  if (result != "/") result += '/';
  return result + last;
}

Result<> UnmountByHelper(const std::string& mountpoint, UnmountMode mode) {
  std::vector<std::string> arguments = {"fusermount3", "-u"};
  if (mode == UnmountMode::kLazy) arguments.emplace_back("-z");
  arguments.emplace_back("--");
  arguments.push_back(mountpoint);
  auto ran = RunProgram(arguments, kFusermountLimit);
  if (!ran.has_value()) {
    return std::move(ran).error().AddContext(
        "unmounting as an ordinary user needs fusermount3 (package fuse3)");
  }
  if (ran->exit_code == 0) return {};
  std::string said = ran->error_text;
  while (said.ends_with('\n')) said.pop_back();
  const bool busy = said.find("busy") != said.npos;
  return MakeError(busy ? Code::kUnavailable : Code::kIo, "{}",
                   said.empty() ? "fusermount3 failed" : Printable(said));
}

}  // namespace

std::vector<MountEntry> ParseMountInfo(std::string_view text) {
  std::vector<MountEntry> entries;
  for (const std::string_view line : SplitAt(text, '\n')) {
    if (auto entry = ParseLine(line)) entries.push_back(*std::move(entry));
  }
  return entries;
}

Result<std::vector<MountEntry>> ReadMountTable() {
  std::ifstream file("/proc/self/mountinfo", std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)),
                         std::istreambuf_iterator<char>());
  if (text.empty()) {
    return Error(Code::kIo,
                 "/proc/self/mountinfo cannot be read; is /proc mounted?");
  }
  return ParseMountInfo(text);
}

const MountEntry* FindMount(const std::vector<MountEntry>& table,
                            std::string_view mountpoint) {
  for (auto entry = table.rbegin(); entry != table.rend(); ++entry) {
    if (entry->mountpoint == mountpoint) return &*entry;
  }
  return nullptr;
}

const MountEntry* FindWeightfsAbove(const std::vector<MountEntry>& table,
                                    std::string_view path) {
  const MountEntry* best = nullptr;
  for (const MountEntry& entry : table) {
    if (entry.type != kWeightfsType || !IsWithin(path, entry.mountpoint)) {
      continue;
    }
    if (best == nullptr || entry.mountpoint.size() >= best->mountpoint.size()) {
      best = &entry;
    }
  }
  return best;
}

MountState ProbeMount(const std::string& mountpoint,
                      std::chrono::milliseconds limit) {
  // statfs, since the daemon is asked each time: attributes are cached by the
  // kernel for hours, also after a crash.
  auto output = RunInChild(limit, [&](const auto& write) {
    struct statfs totals {};
    const int failed = ::statfs(mountpoint.c_str(), &totals) == 0 ? 0 : errno;
    // ECONNABORTED: it crashed while it was asked.
    const bool crashed = failed == ENOTCONN || failed == ECONNABORTED;
    write(crashed ? "crashed" : "live");
  });
  if (!output.has_value() || output->timed_out) return MountState::kHung;
  return output->text == "crashed" ? MountState::kCrashed : MountState::kLive;
}

Result<std::string> ResolveMountpoint(const std::string& path) {
  std::error_code failed;
  std::filesystem::path whole = std::filesystem::absolute(path, failed);
  if (failed) {
    return MakeError(Code::kIo, "the working folder cannot be used: {}",
                     failed.message());
  }
  for (int links = 0; links < kMaxLinks; ++links) {
    ASSIGN_OR_RETURN(std::string resolved, ResolveButLast(whole));
    // Of a mount's root this is EINVAL without asking its daemon, which may
    // hang (std::filesystem::read_symlink would ask).
    std::array<char, PATH_MAX> target{};
    const ssize_t length =
        ::readlink(resolved.c_str(), target.data(), target.size());
    if (length < 0) return resolved;
    whole = std::filesystem::path(resolved).parent_path() /
            std::string_view(target.data(), static_cast<size_t>(length));
  }
  return MakeError(Code::kInvalid, "{}: too many links", path);
}

bool IsWithin(std::string_view path, std::string_view folder) {
  if (folder == "/") return path.starts_with('/');
  return path.starts_with(folder) &&
         (path.size() == folder.size() || path[folder.size()] == '/');
}

Result<> Unmount(const std::string& mountpoint, UnmountMode mode) {
  const int flags =
      UMOUNT_NOFOLLOW | (mode == UnmountMode::kLazy ? MNT_DETACH : 0);
  if (::umount2(mountpoint.c_str(), flags) == 0) return {};
  if (errno == EBUSY) return Error(Code::kUnavailable, "the mount is busy");
  if (errno != EPERM) {
    return MakeError(Code::kIo, "{}", std::generic_category().message(errno));
  }
  return UnmountByHelper(mountpoint, mode);
}

}  // namespace weightfs
