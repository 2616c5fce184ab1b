#include "cache/cache_disk.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>

namespace weightfs {
namespace {

constexpr auto kMaxOffset =
    static_cast<uint64_t>(std::numeric_limits<off_t>::max());

template <class Call>
auto RetryEintr(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result < 0 ? static_cast<decltype(result)>(-errno) : result;
}

// Of one IsResident: more than the largest request has.
constexpr size_t kMostPagesAsked = 512;

size_t PageSize() {
  static const auto size = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  return size;
}

class SystemDisk final : public CacheDisk {
 public:
  ssize_t Read(int fd, std::span<std::byte> out, uint64_t offset) override {
    return RetryEintr([&] {
      return ::pread(fd, out.data(), out.size(), static_cast<off_t>(offset));
    });
  }

  ssize_t ReadNowait(int fd, std::span<std::byte> out,
                     uint64_t offset) override {
    iovec vector{out.data(), out.size()};
    return RetryEintr([&] {
      return ::preadv2(fd, &vector, 1, static_cast<off_t>(offset), RWF_NOWAIT);
    });
  }

  ssize_t Write(int fd, std::span<const std::byte> bytes,
                uint64_t offset) override {
    return RetryEintr([&] {
      return ::pwrite(fd, bytes.data(), bytes.size(),
                      static_cast<off_t>(offset));
    });
  }

  bool IsResident(std::span<const std::byte> bytes) override {
    const size_t before =
        reinterpret_cast<uintptr_t>(bytes.data()) % PageSize();
    const size_t length = before + bytes.size();
    std::array<unsigned char, kMostPagesAsked> resident;
    const size_t pages = (length + PageSize() - 1) / PageSize();
    if (pages > resident.size()) return false;
    // The kernel's prototype lacks the const; it writes to `resident` alone.
    auto* const start = const_cast<std::byte*>(bytes.data() - before);
    return ::mincore(start, length, resident.data()) == 0 &&
           std::all_of(resident.begin(),
                       resident.begin() + static_cast<ptrdiff_t>(pages),
                       [](unsigned char page) { return (page & 1) != 0; });
  }

  int Sync(int fd) override {
    return RetryEintr([&] { return ::fdatasync(fd); });
  }

  int Allocate(int fd, uint64_t offset, uint64_t length) override {
    int result = EINTR;
    while (result == EINTR) {
      result = ::posix_fallocate(fd, static_cast<off_t>(offset),
                                 static_cast<off_t>(length));
    }
    return -result;
  }

  int Punch(int fd, uint64_t offset, uint64_t length) override {
    return RetryEintr([&] {
      return ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                         static_cast<off_t>(offset),
                         static_cast<off_t>(length));
    });
  }

  int WriteOut(int fd, uint64_t offset, uint64_t length) override {
    return LossOnly(RetryEintr([&] {
      return ::sync_file_range(
          fd, static_cast<off64_t>(offset), static_cast<off64_t>(length),
          SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
              SYNC_FILE_RANGE_WAIT_AFTER);
    }));
  }

  int SyncMapping(std::span<std::byte> bytes) override {
    // From the page that they begin in.
    const size_t before =
        reinterpret_cast<uintptr_t>(bytes.data()) % PageSize();
    return RetryEintr([&] {
      return ::msync(bytes.data() - before, before + bytes.size(), MS_SYNC);
    });
  }

  int WritebackError(int fd) override {
    // A range that no file has pages in: nothing to wait for, and the error
    // that the kernel keeps for this description is reported all the same.
    return LossOnly(RetryEintr([&] {
      return ::sync_file_range(fd, static_cast<off64_t>(kMaxOffset - 1), 1,
                               SYNC_FILE_RANGE_WAIT_BEFORE);
    }));
  }

 private:
  // Other errors of sync_file_range: the call is not supported here.
  static int LossOnly(int result) {
    const bool lost = result == -EIO || result == -ENOSPC || result == -EDQUOT;
    return lost ? result : 0;
  }
};

}  // namespace

CacheDisk& CacheDisk::System() {
  static SystemDisk disk;
  return disk;
}

Error DiskError(int error_number, std::string_view what) {
  const bool full = error_number == ENOSPC || error_number == EDQUOT ||
                    error_number == EFBIG;  // RLIMIT_FSIZE
  const char* text = ::strerrordesc_np(error_number);
  return MakeError(full ? Code::kNoSpace : Code::kIo, "{}: {}", what,
                   text != nullptr ? text : "unknown error");
}

Result<> WriteFully(CacheDisk& disk, int fd, std::span<const std::byte> bytes,
                    uint64_t offset, std::string_view what) {
  while (!bytes.empty()) {
    const ssize_t written = disk.Write(fd, bytes, offset);
    if (written < 0) return DiskError(static_cast<int>(-written), what);
    if (written == 0) return MakeError(Code::kIo, "{}: wrote nothing", what);
    bytes = bytes.subspan(static_cast<size_t>(written));
    offset += static_cast<uint64_t>(written);
  }
  return {};
}

}  // namespace weightfs
