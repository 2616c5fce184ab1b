#include "cache/lock_probe.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>

#include "cache/cache_disk.h"
#include "cache/slab_locks.h"
#include "formats/base/unique_fd.h"

namespace weightfs {
namespace {

constexpr uint64_t kProbeSize = 4096;
constexpr uint64_t kHeld = 0;     // one byte that the parent locks
constexpr uint64_t kFree = 1024;  // one byte that nobody locks
constexpr uint64_t kToken = 0x77656967687466ULL;

enum class Finding : uint8_t {
  kFine,
  kLockNotSeen,
  kLockRefused,
  kNotShared,
  kFailed,
};

std::atomic_ref<uint64_t> Word(void* mapped, size_t index) {
  return std::atomic_ref<uint64_t>(static_cast<uint64_t*>(mapped)[index]);
}

// Whether the file has a block to map: on a full disk a store to a hole is a
// bus error.
Result<bool> HasBlock(int fd) {
  const int error = ::posix_fallocate(fd, 0, kProbeSize);
  if (error == 0) return true;
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) return false;
  return DiskError(error, "the probe of locks");
}

// In the child: async-signal-safe calls only.
Finding Examine(int dir_fd, const char* name, bool mappable) {
  const int fd = ::openat(dir_fd, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) return Finding::kFailed;
  if (SetOfdLock(fd, F_WRLCK, kHeld, 1) != -EAGAIN) {
    return Finding::kLockNotSeen;
  }
  if (SetOfdLock(fd, F_RDLCK, kHeld, 1) != 0 ||
      SetOfdLock(fd, F_WRLCK, kFree, 1) != 0) {
    return Finding::kLockRefused;
  }
  if (!mappable) return Finding::kFine;
  void* mapped =
      ::mmap(nullptr, kProbeSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (mapped == MAP_FAILED || Word(mapped, 0).load() != kToken) {
    return Finding::kNotShared;
  }
  Word(mapped, 1).store(kToken);
  return Finding::kFine;
}

Result<> Explain(Finding finding) {
  switch (finding) {
    case Finding::kFine:
      return {};
    case Finding::kLockNotSeen:
      return Error(Code::kUnsupported,
                   "a lock of one process does not stop another here (OFD "
                   "locks); choose a folder on a local disk");
    case Finding::kLockRefused:
      return Error(Code::kUnsupported,
                   "this file system refuses locks that are free (OFD locks); "
                   "choose a folder on a local disk");
    case Finding::kNotShared:
      return Error(Code::kUnsupported,
                   "processes do not share mapped files here; choose a folder "
                   "on a local disk");
    case Finding::kFailed:
      break;
  }
  return Error(Code::kIo, "the probe of locks failed");
}

Result<Finding> AskChild(int dir_fd, const std::string& name, bool mappable) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
    return DiskError(errno, "the probe of locks");
  }
  UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) return DiskError(errno, "the probe of locks");
  if (child == 0) {
    const Finding finding = Examine(dir_fd, name.c_str(), mappable);
    const ssize_t written = ::write(ends[1], &finding, sizeof(finding));
    ::_exit(written == sizeof(finding) ? 0 : 1);
  }
  writer.Reset();
  Finding finding = Finding::kFailed;
  ssize_t got = -1;
  do {
    got = ::read(reader.get(), &finding, sizeof(finding));
  } while (got < 0 && errno == EINTR);
  // ECHILD where the process ignores SIGCHLD: the pipe has the answer.
  while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
  return got == sizeof(finding) ? finding : Finding::kFailed;
}

Result<> Probe(int dir_fd, const std::string& name, int fd) {
  const int locked = SetOfdLock(fd, F_RDLCK, kHeld, 1);
  if (locked != 0) {
    return MakeError(Code::kUnsupported,
                     "this file system has no OFD locks (error {}); choose a "
                     "folder on a local disk",
                     -locked);
  }
  ASSIGN_OR_RETURN(const bool mappable, HasBlock(fd));
  if (!mappable) {
    ASSIGN_OR_RETURN(const Finding finding, AskChild(dir_fd, name, false));
    return Explain(finding);
  }
  void* mapped =
      ::mmap(nullptr, kProbeSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (mapped == MAP_FAILED) return Explain(Finding::kNotShared);
  Word(mapped, 0).store(kToken);
  auto finding = AskChild(dir_fd, name, true);
  if (finding.has_value() && *finding == Finding::kFine &&
      Word(mapped, 1).load() != kToken) {
    finding = Finding::kNotShared;
  }
  ::munmap(mapped, kProbeSize);
  RETURN_IF_ERROR(finding);
  return Explain(*finding);
}

}  // namespace

Result<> ProbeLocks(int dir_fd, const std::string& name) {
  UniqueFd fd(::openat(dir_fd, name.c_str(),
                       O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW,
                       0600));
  if (!fd.valid()) return DiskError(errno, "the probe of locks");
  auto result = Probe(dir_fd, name, fd.get());
  ::unlinkat(dir_fd, name.c_str(), 0);
  return result;
}

}  // namespace weightfs
