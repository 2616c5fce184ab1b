#include "tests/support/faulty_disk.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

namespace weightfs {

ssize_t FaultyDisk::Read(int fd, std::span<std::byte> out, uint64_t offset) {
  ++reads_;
  if (read_error != 0) return -read_error;
  const ssize_t got = disk_.Read(fd, out, offset);
  if (got > 0 && flip_next_read.exchange(false)) {
    out[static_cast<size_t>(got) / 2] ^= std::byte{4};
  }
  return got;
}

ssize_t FaultyDisk::ReadNowait(int fd, std::span<std::byte> out,
                               uint64_t offset) {
  if (cold) return -EAGAIN;
  if (read_error != 0) return -read_error;
  return disk_.ReadNowait(fd, out, offset);
}

ssize_t FaultyDisk::Write(int fd, std::span<const std::byte> bytes,
                          uint64_t offset) {
  ++writes_;
  if (CrashesNow()) {
    static_cast<void>(disk_.Write(fd, bytes.first(bytes.size() / 2), offset));
    throw DiskCrash();
  }
  if (before_write) before_write();
  if (write_error != 0) return -write_error;
  ssize_t written = 0;
  if (tear_next_write.exchange(false)) {
    written = disk_.Write(fd, bytes.first(bytes.size() / 2), offset);
    if (written > 0) written = static_cast<ssize_t>(bytes.size());
  } else if (short_writes != 0) {
    written = disk_.Write(
        fd, bytes.first(std::min<size_t>(bytes.size(), short_writes)), offset);
  } else {
    written = disk_.Write(fd, bytes, offset);
  }
  if (after_write) after_write();
  return written;
}

int FaultyDisk::Sync(int fd) {
  if (CrashesNow()) throw DiskCrash();
  return sync_error != 0 ? -sync_error : disk_.Sync(fd);
}

int FaultyDisk::WriteOut(int fd, uint64_t offset, uint64_t length) {
  if (write_out_error != 0) return -write_out_error;
  return disk_.WriteOut(fd, offset, length);
}

int FaultyDisk::Allocate(int fd, uint64_t offset, uint64_t length) {
  if (CrashesNow()) throw DiskCrash();
  if (before_allocate) before_allocate();
  return allocate_error != 0 ? -allocate_error
                             : disk_.Allocate(fd, offset, length);
}

int FaultyDisk::Punch(int fd, uint64_t offset, uint64_t length) {
  if (CrashesNow()) throw DiskCrash();
  if (before_punch) before_punch();
  const int result =
      punch_error != 0 ? -punch_error : disk_.Punch(fd, offset, length);
  if (after_punch) after_punch();
  return result;
}

int FaultyDisk::SyncMapping(std::span<std::byte> bytes) {
  if (CrashesNow()) throw DiskCrash();
  if (sync_error != 0) return -sync_error;
  return skip_mapping_sync ? 0 : disk_.SyncMapping(bytes);
}

int FaultyDisk::WritebackError(int fd) {
  {
    MutexLock lock(mutex_);
    struct stat status {};
    if (!lost_inodes_.empty() && ::fstat(fd, &status) == 0 &&
        lost_inodes_.erase(status.st_ino) > 0) {
      return -EIO;
    }
  }
  const int lost = lost_writes.exchange(0);
  return lost != 0 ? -lost : disk_.WritebackError(fd);
}

void FaultyDisk::LoseWritesOf(uint64_t inode) {
  MutexLock lock(mutex_);
  lost_inodes_.insert(inode);
}

bool FaultyDisk::KnowsOfLosses() {
  MutexLock lock(mutex_);
  return lost_inodes_.empty();
}

bool FaultyDisk::CrashesNow() {
  return crash_after >= 0 && crash_after.fetch_sub(1) == 0;
}

}  // namespace weightfs
