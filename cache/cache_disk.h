// CacheDisk: the system calls that move the cache's bytes, so that tests can
// inject a full disk, I/O errors, torn writes and flipped bits. Names, locks
// and mappings do not go through it.
//
// Thread-safety: implementations are safe for concurrent use.

#ifndef WEIGHTFS_CACHE_CACHE_DISK_H_
#define WEIGHTFS_CACHE_CACHE_DISK_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "formats/base/error.h"
#include "formats/base/result.h"

namespace weightfs {

class CacheDisk {
 public:
  virtual ~CacheDisk() = default;

  // As pread, preadv2(RWF_NOWAIT) and pwrite, but an error is -errno; EINTR is
  // retried. Short counts are passed on.
  virtual ssize_t Read(int fd, std::span<std::byte> out, uint64_t offset) = 0;
  virtual ssize_t ReadNowait(int fd, std::span<std::byte> out,
                             uint64_t offset) = 0;
  virtual ssize_t Write(int fd, std::span<const std::byte> bytes,
                        uint64_t offset) = 0;

  // Whether the pages that `bytes` lie in, a part of a mapping, are in the page
  // cache: mincore. May be false though they are.
  virtual bool IsResident(std::span<const std::byte> /*bytes*/) {
    return false;
  }

  // 0 or -errno: fdatasync.
  virtual int Sync(int fd) = 0;
  // Writes pages of the range to the disk and waits for that, so that a later
  // Sync has less to do; may do nothing. 0 or -errno, which neither Sync nor
  // WritebackError tells again.
  virtual int WriteOut(int /*fd*/, uint64_t /*offset*/, uint64_t /*length*/) {
    return 0;
  }
  // 0 or -errno: posix_fallocate; fallocate(PUNCH_HOLE).
  virtual int Allocate(int fd, uint64_t offset, uint64_t length) = 0;
  virtual int Punch(int fd, uint64_t offset, uint64_t length) = 0;
  // msync(MS_SYNC) of the pages that `bytes` lie in, a part of a mapping.
  virtual int SyncMapping(std::span<std::byte> bytes) = 0;

  // -errno if the kernel failed to write back bytes of this file since the
  // description was opened or this was last asked; 0 if not. Does not wait for
  // the disk. After such a failure the page cache may drop the bytes, and the
  // file then holds what was on the disk before.
  virtual int WritebackError(int fd) = 0;

  static CacheDisk& System();
};

// kNoSpace for a full disk or quota, else kIo: "`what`: No space left on
// device".
Error DiskError(int error_number, std::string_view what);

// All of `bytes`, however many writes that takes.
Result<> WriteFully(CacheDisk& disk, int fd, std::span<const std::byte> bytes,
                    uint64_t offset, std::string_view what);

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_CACHE_DISK_H_
