// Passthrough: files that the kernel reads by itself, from the cache's disk,
// without asking the daemon: which of them are open so, and what is registered
// with the kernel for that.
//
// The kernel's rules, and where they are kept: all handles of a node are in one
// mode, cached or through, else an open fails (Open decides, Release counts).
// What is registered pins its bytes in the cache; mappings outlive the handle
// that they were made through, and keep the node but not the handle: so a
// registration ends when the kernel forgets the node, and never at a release
// (tests/model, CLOSE_AT_RELEASE). The kernel forgets when it has to, or is
// asked to (TakeIdle).
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_FS_FUSE_PASSTHROUGH_H_
#define WEIGHTFS_FS_FUSE_PASSTHROUGH_H_

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "formats/base/clock.h"
#include "formats/base/mutex.h"
#include "fs/fuse_settings.h"
#include "fs/repo.h"

namespace weightfs {

class Passthrough {
 public:
  // The kernel's side of it. Neither call waits.
  class Device {
   public:
    virtual ~Device() = default;
    // Registers what `fd` is open on; its open file description is kept, `fd`
    // is not. An id, above 0, or -errno.
    virtual int Open(int fd) = 0;
    virtual void Close(int id) = 0;
  };
  // By the descriptor of /dev/fuse that a mount has, which must outlive it.
  static std::unique_ptr<Device> KernelDevice(int fuse_fd);

  explicit Passthrough(std::chrono::milliseconds idle) : idle_(idle) {}
  Passthrough(const Passthrough&) = delete;
  Passthrough& operator=(const Passthrough&) = delete;

  // Look-ups count from now on: before the first, if On() may come.
  void Expect() EXCLUDES(mutex_);
  // Tries whether the kernel lets this process register anything, and if so
  // begins. Else it is off, and the totals say why.
  void On(std::unique_ptr<Device> device) EXCLUDES(mutex_);
  void Off(std::string why) EXCLUDES(mutex_);

  // The kernel learns of nodes; before it is told. Others than those of whole
  // objects do not count.
  void CountLookups(std::span<const uint64_t> nodes) EXCLUDES(mutex_);
  // It forgets `count` look-ups of the node, or never heard of them.
  void Forget(uint64_t node, uint64_t count) EXCLUDES(mutex_);

  // Whether an open of the node should bring what can be shared of it, with
  // what is in use.
  bool Wants(uint64_t node, std::shared_ptr<CacheFile>& in_use)
      EXCLUDES(mutex_);
  // How a handle is opened: id > 0: through; 0: cached, as without this class;
  // nothing: not at all, since it is open through, from bytes that are not to
  // be trusted any more. A handle that is opened counts until Release.
  std::optional<int> Open(uint64_t node, Repo::Sharing sharing)
      EXCLUDES(mutex_);
  void Release(uint64_t node) EXCLUDES(mutex_);

  // Waits for nodes that nobody has open and that pin bytes, a while after the
  // last release or look-up: the kernel should forget them, which it does after
  // their last mapping went. Each comes once per such. Empty after Stop().
  std::vector<uint64_t> TakeIdle() EXCLUDES(mutex_);
  void Stop() EXCLUDES(mutex_);

  PassthroughTotals totals() const EXCLUDES(mutex_);

 private:
  struct Registered {
    int id = 0;
    std::pair<uint64_t, uint64_t> inode;
  };
  struct Node {
    uint64_t lookups = 0;
    uint32_t handles = 0;
    bool through = false;  // what the handles are
    // The last is the one in use; others have mappings at most.
    std::vector<Registered> registered;
    std::shared_ptr<CacheFile> in_use;  // while handles are through
    std::optional<Clock::Time> idle_at;
  };
  using Nodes = std::unordered_map<uint64_t, Node>;

  std::optional<int> Decide(uint64_t node, const Repo::Sharing& sharing,
                            std::string& warning) EXCLUDES(mutex_);
  // The id under which the kernel has it; 0: it does not take it.
  int Register(Node& node, const Repo::Shared& shared, std::string& warning)
      REQUIRES(mutex_);
  // What to log of it.
  std::string Refused(int error) REQUIRES(mutex_);
  // If it pins bytes that nobody has open.
  void AwaitIdle(uint64_t id, Node& node) REQUIRES(mutex_);
  void EraseIfUnused(Nodes::iterator it) REQUIRES(mutex_);

  const std::chrono::milliseconds idle_;
  mutable Mutex mutex_;  // held over the device's calls, which do not wait
  CondVar changed_;
  bool counting_ GUARDED_BY(mutex_) = false;
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::unique_ptr<Device> device_ GUARDED_BY(mutex_);
  Nodes nodes_ GUARDED_BY(mutex_);
  // Of nodes whose idle_at still is that.
  std::deque<std::pair<Clock::Time, uint64_t>> idle_nodes_ GUARDED_BY(mutex_);
  PassthroughTotals totals_ GUARDED_BY(mutex_);
};

}  // namespace weightfs

#endif  // WEIGHTFS_FS_FUSE_PASSTHROUGH_H_
