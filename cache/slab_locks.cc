#include "cache/slab_locks.h"

#include <fcntl.h>

#include <cassert>
#include <cerrno>

#include "cache/cache_disk.h"
#include "cache/object_cache.h"
#include "formats/base/log.h"

namespace weightfs {

int SetOfdLock(int fd, short type, uint64_t start, uint64_t length) {
  struct flock lock {};  // l_pid must be 0
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = static_cast<off_t>(start);
  lock.l_len = static_cast<off_t>(length);
  while (::fcntl(fd, F_OFD_SETLK, &lock) != 0) {
    if (errno == EINTR) continue;
    return errno == EACCES ? -EAGAIN : -errno;
  }
  return 0;
}

SlabLocks::SlabLocks(int fd, uint64_t slabs)
    : fd_(fd), counts_(std::make_unique<std::atomic<uint32_t>[]>(slabs)) {}

Result<> SlabLocks::Pin(uint64_t slab) {
  std::atomic<uint32_t>& count = counts_[slab];
  uint32_t seen = count.load(std::memory_order_acquire);
  while (seen > 0) {
    if (count.compare_exchange_weak(seen, seen + 1,
                                    std::memory_order_acq_rel)) {
      return {};
    }
  }
  MutexLock lock(mutex_);
  if (count.load(std::memory_order_acquire) == 0) {
    const int result = SetOfdLock(fd_, F_RDLCK, slab * kSlabSize, kSlabSize);
    if (result == -EAGAIN) {
      return MakeError(Code::kStale, "slab {} is being evicted", slab);
    }
    if (result < 0) return DiskError(-result, "locking a slab");
  }
  // Not below 1 here unless it was 0: the last Unpin takes the mutex.
  count.fetch_add(1, std::memory_order_acq_rel);
  return {};
}

void SlabLocks::Unpin(uint64_t slab) {
  std::atomic<uint32_t>& count = counts_[slab];
  uint32_t seen = count.load(std::memory_order_acquire);
  assert(seen > 0);
  while (seen > 1) {
    if (count.compare_exchange_weak(seen, seen - 1,
                                    std::memory_order_acq_rel)) {
      return;
    }
  }
  MutexLock lock(mutex_);
  if (count.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  const int result = SetOfdLock(fd_, F_UNLCK, slab * kSlabSize, kSlabSize);
  // The slab stays locked, which costs space and is never wrong.
  if (result < 0) LogWarning("cannot unlock a slab error={}", -result);
}

bool SlabLocks::IsPinned(uint64_t slab) const {
  return counts_[slab].load(std::memory_order_acquire) > 0;
}

}  // namespace weightfs
