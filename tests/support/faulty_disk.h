// FaultyDisk: a CacheDisk that fails as it is told. Faults apply to the calls
// that follow; each count is of calls.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_TESTS_SUPPORT_FAULTY_DISK_H_
#define WEIGHTFS_TESTS_SUPPORT_FAULTY_DISK_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <set>

#include "cache/cache_disk.h"
#include "formats/base/mutex.h"

namespace weightfs {

struct DiskCrash {};

class FaultyDisk final : public CacheDisk {
 public:
  explicit FaultyDisk(CacheDisk& disk = CacheDisk::System()) : disk_(disk) {}

  // Every such call fails with this errno; 0: works again.
  std::atomic<int> write_error = 0;
  std::atomic<int> read_error = 0;
  std::atomic<int> sync_error = 0;
  std::atomic<int> write_out_error = 0;
  std::atomic<int> allocate_error = 0;
  std::atomic<int> punch_error = 0;
  // Mappings are not synced, which is slow where a test evicts all the time.
  std::atomic<bool> skip_mapping_sync = false;
  // The next WritebackError answers this once, as kernels do.
  std::atomic<int> lost_writes = 0;
  // The next WritebackError of that file says EIO, once.
  void LoseWritesOf(uint64_t inode) EXCLUDES(mutex_);
  bool KnowsOfLosses() EXCLUDES(mutex_);  // all were told
  // So many calls that change the disk succeed; the next throws DiskCrash, as
  // if the process died there, a write in its middle. Below 0: none.
  std::atomic<int64_t> crash_after = -1;
  // Writes are cut to this many bytes and say so; 0: not.
  std::atomic<uint64_t> short_writes = 0;
  // Only half of the next write reaches the file, and it says that all did.
  std::atomic<bool> tear_next_write = false;
  // The next read gives bytes of which one bit is flipped.
  std::atomic<bool> flip_next_read = false;
  // No byte is in the page cache: ReadNowait gives -EAGAIN.
  std::atomic<bool> cold = false;
  // Runs before blocks are allocated.
  std::function<void()> before_allocate;
  // Run before the file is written, and after it.
  std::function<void()> before_write;
  std::function<void()> after_write;
  // Run before and after a hole is punched.
  std::function<void()> before_punch;
  std::function<void()> after_punch;

  uint64_t reads() const { return reads_; }
  uint64_t writes() const { return writes_; }

  ssize_t Read(int fd, std::span<std::byte> out, uint64_t offset) override;
  ssize_t ReadNowait(int fd, std::span<std::byte> out,
                     uint64_t offset) override;
  bool IsResident(std::span<const std::byte> bytes) override {
    return !cold && disk_.IsResident(bytes);
  }
  ssize_t Write(int fd, std::span<const std::byte> bytes,
                uint64_t offset) override;
  int Sync(int fd) override;
  int WriteOut(int fd, uint64_t offset, uint64_t length) override;
  int Allocate(int fd, uint64_t offset, uint64_t length) override;
  int Punch(int fd, uint64_t offset, uint64_t length) override;
  int SyncMapping(std::span<std::byte> bytes) override;
  int WritebackError(int fd) override EXCLUDES(mutex_);

 private:
  // Whether this call is the one to crash in.
  bool CrashesNow();

  CacheDisk& disk_;
  Mutex mutex_;
  std::set<uint64_t> lost_inodes_ GUARDED_BY(mutex_);
  std::atomic<uint64_t> reads_ = 0;
  std::atomic<uint64_t> writes_ = 0;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_SUPPORT_FAULTY_DISK_H_
