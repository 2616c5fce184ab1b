// VolatileDisk: a CacheDisk that knows which bytes would survive a power cut,
// and cuts the power when it is told: each page of a file that was written to
// and not synced since is then as it was when it was synced last, or not, as
// the caller decides. Nothing is really synced, which makes it fast.
//
// It follows files, of one file system, from their first Allocate or Write on,
// through descriptions of its own, which hold no locks. Stores into mappings
// are not seen: pages of a mapped file are durable as they were written or
// synced (SyncMapping) last. Folders, names and sizes are always durable.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_TESTS_SUPPORT_VOLATILE_DISK_H_
#define WEIGHTFS_TESTS_SUPPORT_VOLATILE_DISK_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cache/cache_disk.h"
#include "formats/base/mutex.h"
#include "formats/base/unique_fd.h"

namespace weightfs {

class VolatileDisk final : public CacheDisk {
 public:
  static constexpr uint64_t kPage = 4096;
  // Whether something happens to a page. A lost one is back to what it was when
  // it was synced last.
  using Chooses = std::function<bool(uint64_t page)>;

  // Loses unsynced pages of the file at `path`; of all files.
  void Lose(const std::string& path, const Chooses& lost) EXCLUDES(mutex_);
  void LoseAll(const Chooses& lost) EXCLUDES(mutex_);
  // Writes pages of a file to the disk, as kernels do when they like.
  void WriteBack(const std::string& path, const Chooses& written)
      EXCLUDES(mutex_);
  // Lets go of all files.
  void Forget() EXCLUDES(mutex_);

  ssize_t Read(int fd, std::span<std::byte> out, uint64_t offset) override;
  ssize_t ReadNowait(int fd, std::span<std::byte> out,
                     uint64_t offset) override;
  ssize_t Write(int fd, std::span<const std::byte> bytes,
                uint64_t offset) override EXCLUDES(mutex_);
  int Sync(int fd) override EXCLUDES(mutex_);
  int Allocate(int fd, uint64_t offset, uint64_t length) override
      EXCLUDES(mutex_);
  int Punch(int fd, uint64_t offset, uint64_t length) override EXCLUDES(mutex_);
  int SyncMapping(std::span<std::byte> bytes) override EXCLUDES(mutex_);
  int WritebackError(int fd) override;

 private:
  struct File {
    uint64_t inode = 0;
    UniqueFd fd;
    // What is on the disk of the pages that may be others in memory.
    std::map<uint64_t, std::vector<std::byte>> durable;
  };

  // The file, followed from now on.
  File& Follow(int fd) REQUIRES(mutex_);
  File* Find(uint64_t inode) REQUIRES(mutex_);
  File* Find(const std::string& path) REQUIRES(mutex_);
  // Remembers what is on the disk of the range, before it changes.
  static void Remember(File& file, uint64_t offset, uint64_t length);
  static void LoseOf(File& file, const Chooses& lost);

  CacheDisk& disk_ = CacheDisk::System();
  Mutex mutex_;
  // As they were first seen: the same seed loses the same pages.
  std::vector<std::unique_ptr<File>> files_ GUARDED_BY(mutex_);
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_SUPPORT_VOLATILE_DISK_H_
