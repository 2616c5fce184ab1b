// OrderKeeper: loads the learned order of a mount's commit when the mount
// starts, and keeps what this mount learned: now and then, and when it ends.
// All on a thread of its own, so that no read waits for the disk; where the
// disk does not take it, or holds what is no order, there is none.
//
// Thread-safety: one thread makes it, finishes it and lets it go.

#ifndef WEIGHTFS_TOOLS_ORDER_KEEPER_H_
#define WEIGHTFS_TOOLS_ORDER_KEEPER_H_

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "cache/snapshot_store.h"
#include "formats/base/mutex.h"
#include "fs/repo.h"
#include "fs/vfs.h"

namespace weightfs {

class OrderKeeper {
 public:
  static constexpr std::chrono::milliseconds kPause{10'000};

  // `repo` and `vfs` must outlive it.
  OrderKeeper(const std::string& cache_folder, const Repo& repo, Vfs& vfs,
              std::chrono::milliseconds pause = kPause);
  // Finishes.
  ~OrderKeeper();
  OrderKeeper(const OrderKeeper&) = delete;
  OrderKeeper& operator=(const OrderKeeper&) = delete;

  // Keeps what there is; waits for the disk, 1 s at most. Idempotent.
  void Finish() EXCLUDES(mutex_);

 private:
  void Run() EXCLUDES(mutex_);
  // False once it is to end.
  bool Wait() EXCLUDES(mutex_);
  void Save();

  const Repo& repo_;
  Vfs& vfs_;
  const std::chrono::milliseconds pause_;
  SnapshotStore store_;
  std::vector<FileRun> saved_;  // the thread's; so is the next
  uint64_t touches_ = 0;        // that are in what was saved
  Mutex mutex_;
  CondVar wake_;
  bool ending_ GUARDED_BY(mutex_) = false;
  std::jthread thread_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_ORDER_KEEPER_H_
