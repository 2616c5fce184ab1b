// SlabLocks: this process's pins on the slabs of one object: a count per slab
// and, while it is not zero, a shared OFD lock on the slab's bytes of `data`.
// An evictor of any process needs the exclusive lock, and takes it on an open
// file description of its own (cache/LAYOUT.md, "Pins").
//
// Thread-safety: safe for concurrent use. Ownership: borrows the descriptor;
// the locks go when its open file description is closed.

#ifndef WEIGHTFS_CACHE_SLAB_LOCKS_H_
#define WEIGHTFS_CACHE_SLAB_LOCKS_H_

#include <atomic>
#include <cstdint>
#include <memory>

#include "formats/base/mutex.h"
#include "formats/base/result.h"

namespace weightfs {

// The byte of `data` that whoever has the object open holds a shared lock on:
// with an exclusive one, nobody has it open, and its folder may be removed.
inline constexpr uint64_t kPresenceByte = uint64_t{1} << 62;

// One F_OFD_SETLK, which never waits: 0 or -errno; -EAGAIN if another open file
// description holds a lock that conflicts. `type`: F_RDLCK, F_WRLCK, F_UNLCK.
int SetOfdLock(int fd, short type, uint64_t start, uint64_t length);

class SlabLocks {
 public:
  SlabLocks(int fd, uint64_t slabs);

  // kStale: the slab is being evicted now; take its bytes as absent.
  // REQUIRES: slab is in the object.
  Result<> Pin(uint64_t slab);
  // REQUIRES: a Pin of the slab succeeded and was not undone yet.
  void Unpin(uint64_t slab);
  bool IsPinned(uint64_t slab) const;

 private:
  const int fd_;
  // 0 → 1 and 1 → 0 happen under the mutex, together with the system call
  // (which does not wait); other changes need no lock.
  Mutex mutex_;
  const std::unique_ptr<std::atomic<uint32_t>[]> counts_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_SLAB_LOCKS_H_
