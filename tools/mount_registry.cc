#include "tools/mount_registry.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>
#include <utility>

#include "formats/base/unique_fd.h"

namespace weightfs {
namespace {

constexpr std::string_view kFirstLine = "weightfs-mount 1";
constexpr std::string_view kSuffix = ".mount";
constexpr size_t kMaxRecord = 64 * 1024;
// Records of another boot or machine are swept after this.
constexpr std::chrono::hours kForeignLifetime{24 * 30};

uint64_t Fnv1a(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  }
  return hash;
}

// `%` and control bytes as %XX, so that a value is one line.
std::string EscapeValue(std::string_view value) {
  std::string out;
  for (const char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || c == '%') {
      out += fmt::format("%{:02X}", byte);
    } else {
      out += c;
    }
  }
  return out;
}

std::optional<std::string> UnescapeValue(std::string_view value) {
  std::string out;
  for (size_t i = 0; i < value.size(); ++i) {
    if (value[i] != '%') {
      out += value[i];
      continue;
    }
    unsigned byte = 0;
    if (i + 2 >= value.size()) return std::nullopt;
    const char* digits = value.data() + i + 1;
    const auto [end, failed] = std::from_chars(digits, digits + 2, byte, 16);
    if (failed != std::errc() || end != digits + 2) return std::nullopt;
    out += static_cast<char>(byte);
    i += 2;
  }
  return out;
}

template <class T>
bool ParseNumber(std::string_view text, T* number) {
  const char* last = text.data() + text.size();
  const auto [end, failed] = std::from_chars(text.data(), last, *number);
  return failed == std::errc() && end == last;
}

bool SetField(std::string_view key, const std::string& value,
              MountRecord* record) {
  if (key == "pid") return ParseNumber(value, &record->pid);
  if (key == "start_time") return ParseNumber(value, &record->start_time);
  if (key == "started") return ParseNumber(value, &record->started);
  if (key == "machine") record->machine = value;
  if (key == "mountpoint") record->mountpoint = value;
  if (key == "source") record->source = value;
  if (key == "repo") record->repo = value;
  if (key == "commit") record->commit = value;
  if (key == "log_file") record->log_file = value;
  if (key == "cache_folder") record->cache_folder = value;
  return true;  // keys of newer versions are ignored
}

std::string ReadSmallFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxRecord, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(std::max<std::streamsize>(file.gcount(), 0)));
  return text;
}

Result<> WriteFileAtomically(const std::string& path, std::string_view text) {
  std::string temporary = path + ".XXXXXX";
  UniqueFd fd(::mkostemp(temporary.data(), O_CLOEXEC));
  const auto fail = [&](const char* what) {
    return MakeError(Code::kIo, "{}: {}: {}", what, temporary,
                     std::generic_category().message(errno));
  };
  if (!fd.valid()) return fail("cannot be made");
  while (!text.empty()) {
    const ssize_t n = ::write(fd.get(), text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      Error error = fail("cannot be written");
      ::unlink(temporary.c_str());
      return error;
    }
    text.remove_prefix(static_cast<size_t>(n));
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    Error error = fail("cannot be renamed");
    ::unlink(temporary.c_str());
    return error;
  }
  return {};
}

bool IsOlderThan(const std::filesystem::path& path, std::chrono::hours age) {
  std::error_code failed;
  const auto written = std::filesystem::last_write_time(path, failed);
  return !failed &&
         std::filesystem::file_time_type::clock::now() - written > age;
}

}  // namespace

std::string FormatRecord(const MountRecord& record) {
  std::string text =
      fmt::format("{}\npid={}\nstart_time={}\nstarted={}\n", kFirstLine,
                  record.pid, record.start_time, record.started);
  const auto add = [&](std::string_view key, const std::string& value) {
    text += fmt::format("{}={}\n", key, EscapeValue(value));
  };
  add("machine", record.machine);
  add("mountpoint", record.mountpoint);
  add("source", record.source);
  add("repo", record.repo);
  add("commit", record.commit);
  add("log_file", record.log_file);
  add("cache_folder", record.cache_folder);
  return text;
}

std::optional<MountRecord> ParseRecord(std::string_view text) {
  MountRecord record;
  bool first = true;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    if (end == text.npos) return std::nullopt;  // cut short
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end + 1);
    if (std::exchange(first, false)) {
      if (line != kFirstLine) return std::nullopt;
      continue;
    }
    const size_t equals = line.find('=');
    if (equals == line.npos) return std::nullopt;
    auto value = UnescapeValue(line.substr(equals + 1));
    if (!value.has_value() ||
        !SetField(line.substr(0, equals), *std::move(value), &record)) {
      return std::nullopt;
    }
  }
  if (record.pid <= 0 || record.mountpoint.empty()) return std::nullopt;
  return record;
}

std::optional<char> ProcessState(pid_t pid) {
  const std::string stat = ReadSmallFile(fmt::format("/proc/{}/stat", pid));
  const size_t at = stat.rfind(')');
  if (at == stat.npos || at + 2 >= stat.size()) return std::nullopt;
  return stat[at + 2];
}

std::optional<uint64_t> ProcessStartTime(pid_t pid) {
  const std::string stat = ReadSmallFile(fmt::format("/proc/{}/stat", pid));
  // The command is in parentheses and may hold any byte; 22 is the start time.
  size_t at = stat.rfind(')');
  if (at == stat.npos || at + 2 >= stat.size()) return std::nullopt;
  const char state = stat[at + 2];
  if (state == 'Z' || state == 'X') return std::nullopt;
  for (int field = 2; field < 22; ++field) {
    at = stat.find(' ', at + 1);
    if (at == stat.npos) return std::nullopt;
  }
  const size_t end = std::min(stat.find(' ', at + 1), stat.size());
  uint64_t ticks = 0;
  if (!ParseNumber(std::string_view(stat).substr(at + 1, end - at - 1),
                   &ticks)) {
    return std::nullopt;
  }
  return ticks;
}

std::string MachineId() {
  std::string boot = ReadSmallFile("/proc/sys/kernel/random/boot_id");
  while (!boot.empty() && boot.back() == '\n') boot.pop_back();
  std::error_code failed;
  const auto name_space =
      std::filesystem::read_symlink("/proc/self/ns/pid", failed);
  return fmt::format("{}/{}", boot, name_space.string());
}

bool IsRunning(const MountRecord& record) {
  return record.machine == MachineId() &&
         ProcessStartTime(record.pid) == record.start_time;
}

std::string MountSlug(std::string_view mountpoint) {
  std::string last(mountpoint.substr(mountpoint.rfind('/') + 1));
  for (char& c : last) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       (c >= '0' && c <= '9') || c == '-' || c == '_' ||
                       c == '.';
    if (!plain) c = '_';
  }
  if (last.size() > 64) last.resize(64);
  if (last.empty()) last = "root";
  return fmt::format("{}-{:08x}", last,
                     static_cast<uint32_t>(Fnv1a(mountpoint)));
}

std::string MountRegistry::PathOf(const MountRecord& record) const {
  // Of this process alone, so that sweeping a dead one's file never takes
  // another's.
  return fmt::format("{}/{:08x}-{}-{}{}", folder_,
                     static_cast<uint32_t>(Fnv1a(record.machine)), record.pid,
                     record.start_time, kSuffix);
}

// What others can write may say anything: which process to end, for one.
Result<> MountRegistry::CheckFolder() const {
  struct stat attr {};
  if (::stat(folder_.c_str(), &attr) != 0) {
    return MakeError(Code::kIo, "{}: {}", folder_,
                     std::generic_category().message(errno));
  }
  if (S_ISDIR(attr.st_mode) && attr.st_uid == ::geteuid() &&
      (attr.st_mode & (S_IWGRP | S_IWOTH)) == 0) {
    return {};
  }
  return MakeError(Code::kDenied,
                   "{} must be a folder of yours that others may not write to",
                   folder_);
}

Result<> MountRegistry::Add(const MountRecord& record) {
  if (folder_.empty()) return {};
  std::error_code failed;
  const mode_t before = ::umask(077);
  std::filesystem::create_directories(folder_, failed);
  ::umask(before);
  RETURN_IF_ERROR(CheckFolder());
  return WriteFileAtomically(PathOf(record), FormatRecord(record));
}

void MountRegistry::Remove(const MountRecord& record) {
  if (!folder_.empty()) ::unlink(PathOf(record).c_str());
}

std::vector<MountRecord> MountRegistry::List() {
  std::vector<MountRecord> running;
  if (folder_.empty() || !CheckFolder().has_value()) return running;
  const std::string machine = MachineId();
  std::error_code failed;
  std::filesystem::directory_iterator entry(folder_, failed);
  for (; !failed && entry != std::filesystem::directory_iterator();
       entry.increment(failed)) {
    const std::string path = entry->path().string();
    if (!path.ends_with(kSuffix)) continue;
    auto record = ParseRecord(ReadSmallFile(path));
    const bool ours = record.has_value() && record->machine == machine;
    if (ours && IsRunning(*record)) {
      running.push_back(*std::move(record));
    } else if (ours || IsOlderThan(entry->path(), kForeignLifetime)) {
      ::unlink(path.c_str());
    }
  }
  std::sort(running.begin(), running.end(), [](const auto& a, const auto& b) {
    return std::pair(a.mountpoint, a.started) <
           std::pair(b.mountpoint, b.started);
  });
  return running;
}

std::optional<MountRecord> MountRegistry::Find(std::string_view mountpoint) {
  std::optional<MountRecord> found;
  for (MountRecord& record : List()) {
    if (record.mountpoint == mountpoint) found = std::move(record);
  }
  return found;
}

}  // namespace weightfs
