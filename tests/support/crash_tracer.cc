#include "tests/support/crash_tracer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

#include "formats/base/unique_fd.h"

namespace weightfs {
namespace {

namespace fs = std::filesystem;

// The name of a call that changes the disk; null for others.
const char* Changes(int64_t call, const uint64_t* arguments) {
  switch (call) {
    case SYS_pwrite64:
      return "pwrite";
    case SYS_fdatasync:
    case SYS_fsync:
      return "sync";
    case SYS_msync:
      return "msync";
    case SYS_fallocate:
      return "fallocate";
    case SYS_ftruncate:
      return "ftruncate";
    case SYS_mkdirat:
#ifdef SYS_mkdir
    case SYS_mkdir:
#endif
      return "mkdir";
#ifdef SYS_renameat
    case SYS_renameat:
#endif
    case SYS_renameat2:
      return "rename";
    case SYS_unlinkat:
      return "unlink";
    case SYS_openat:
      return (arguments[2] & O_CREAT) != 0 ? "create" : nullptr;
    default:
      return nullptr;
  }
}

int Wait(pid_t child) {
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

std::vector<std::byte> ReadAll(const std::string& path) {
  std::error_code failed;
  std::vector<std::byte> bytes(fs::file_size(path, failed));
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  const ssize_t got = ::pread(fd.get(), bytes.data(), bytes.size(), 0);
  bytes.resize(static_cast<size_t>(std::max<ssize_t>(got, 0)));
  return bytes;
}

uint64_t InodeOf(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 ? status.st_ino : 0;
}

}  // namespace

std::optional<CrashTracer::Run> CrashTracer::RunAndKill(
    const std::function<int()>& body, uint64_t calls) {
  synced_.clear();
  std::fflush(nullptr);  // or the child might write it again
  const pid_t child = ::fork();
  if (child == 0) {
    if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) ::_exit(127);
    ::raise(SIGSTOP);
    ::_exit(body());
  }
  Run run;
  if (!WIFSTOPPED(Wait(child))) return std::nullopt;
  ::ptrace(PTRACE_SETOPTIONS, child, nullptr,
           PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
  int64_t call = -1;
  std::array<uint64_t, 6> arguments{};
  for (long signal = 0;;) {
    ::ptrace(PTRACE_SYSCALL, child, nullptr, signal);
    const int status = Wait(child);
    if (!WIFSTOPPED(status)) {
      run.status = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
      return run;
    }
    signal = WSTOPSIG(status) == (SIGTRAP | 0x80) ? 0 : WSTOPSIG(status);
    if (signal != 0) continue;
    __ptrace_syscall_info info{};
    ::ptrace(PTRACE_GET_SYSCALL_INFO, child, sizeof(info), &info);
    if (info.op == PTRACE_SYSCALL_INFO_ENTRY) {
      call = static_cast<int64_t>(info.entry.nr);
      std::copy_n(std::begin(info.entry.args), 6, arguments.begin());
      const char* name = Changes(call, arguments.data());
      if (name == nullptr) continue;
      if (run.calls == calls) {
        run.killed = true;
        run.next = name;
        ::kill(child, SIGKILL);
        Wait(child);
        return run;
      }
      ++run.calls;
    } else if (info.op == PTRACE_SYSCALL_INFO_EXIT && info.exit.rval == 0) {
      NoteSynced(child, call, arguments.data());
    }
  }
}

void CrashTracer::NoteSynced(pid_t child, int64_t call,
                             const uint64_t* arguments) {
  if (call == SYS_fdatasync || call == SYS_fsync) {
    NoteFile(fmt::format("/proc/{}/fd/{}", child, arguments[0]), 0,
             UINT64_MAX / 2);
  } else if (call == SYS_msync) {
    std::ifstream maps(fmt::format("/proc/{}/maps", child));
    for (std::string line; std::getline(maps, line);) {
      // "begin-end rwxp offset major:minor inode path"
      std::istringstream words(line);
      uint64_t begin = 0;
      uint64_t end = 0;
      uint64_t offset = 0;
      std::string skipped;
      std::string path;
      words >> std::hex >> begin;
      words.ignore(1);
      words >> end;
      if (arguments[0] < begin || arguments[0] >= end) continue;
      words >> skipped >> offset >> skipped >> skipped >> std::ws;
      std::getline(words, path);
      NoteFile(path, offset + arguments[0] - begin, arguments[1]);
    }
  }
}

void CrashTracer::NoteFile(const std::string& path, uint64_t offset,
                           uint64_t length) {
  const auto bytes = ReadAll(path);
  Pages& pages = synced_[InodeOf(path)];
  for (uint64_t at = offset / kPage * kPage;
       at < std::min<uint64_t>(offset + length, bytes.size()); at += kPage) {
    const auto first = bytes.begin() + static_cast<ptrdiff_t>(at);
    pages[at / kPage].assign(
        first, first + static_cast<ptrdiff_t>(
                           std::min<uint64_t>(kPage, bytes.size() - at)));
  }
}

void CrashTracer::CopyAfterPowerCut(const std::string& from,
                                    const std::string& to, const Fate& fate,
                                    uint64_t seed) const {
  std::mt19937_64 random(seed);
  for (const auto& entry : fs::recursive_directory_iterator(from)) {
    const std::string path = to + entry.path().string().substr(from.size());
    if (entry.is_directory()) {
      fs::create_directories(path);
      fs::permissions(path, fs::perms::owner_all);
      continue;
    }
    std::vector<std::byte> bytes = ReadAll(entry.path());
    const auto known = synced_.find(InodeOf(entry.path()));
    const Lost lost = fate(entry.path());
    if (lost == Lost::kAll && known == synced_.end()) bytes.clear();
    for (uint64_t at = 0; at < bytes.size(); at += kPage) {
      if (lost == Lost::kNothing ||
          (lost == Lost::kSome && random() % 2 == 0)) {
        continue;
      }
      const auto first = bytes.begin() + static_cast<ptrdiff_t>(at);
      const uint64_t length = std::min<uint64_t>(kPage, bytes.size() - at);
      std::fill_n(first, length, std::byte{});
      if (known == synced_.end()) continue;
      const auto page = known->second.find(at / kPage);
      if (page == known->second.end()) continue;
      std::copy_n(page->second.begin(),
                  std::min<uint64_t>(length, page->second.size()), first);
    }
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
  }
}

}  // namespace weightfs
