// Vfs: the tree of the mount, without FUSE: look-ups, attributes, listings,
// reads, xattrs over a Repo. Design: fs/SEMANTICS.md.
//
// A call that cannot answer at once (bytes to fetch, an index to load) parks:
// it returns, and its `done` runs later on a pool thread. Every parked call
// ends at its deadline, by Interrupt() or by Shutdown(); `done` runs exactly
// once.
//
// Thread-safety: safe for concurrent use. No lock is held while `done` runs.

#ifndef WEIGHTFS_FS_VFS_H_
#define WEIGHTFS_FS_VFS_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cache/snapshot_store.h"
#include "formats/base/clock.h"
#include "formats/base/result.h"
#include "formats/base/timer_queue.h"
#include "formats/base/worker_pool.h"
#include "fs/parked_ops.h"
#include "fs/repo.h"

namespace weightfs {

struct VfsOptions {
  std::chrono::milliseconds read_timeout{300'000};
  std::chrono::milliseconds metadata_timeout{30'000};
  uint64_t readahead = 256 << 20;  // bytes of the largest window
};

struct NodeAttr {
  uint64_t node = 0;  // packed NodeId
  uint64_t ino = 0;   // stable over remounts of the same commit
  bool folder = false;
  uint64_t size = 0;  // bytes
  // How long the answer holds: hours inside the pinned commit, 0 for what may
  // change (.weightfs, a set whose index failed).
  std::chrono::seconds valid{0};
};

struct FsTotals {
  uint64_t bytes = 0;  // of all files of the repository
  uint64_t files = 0;
};

class Vfs {
 public:
  class Impl;  // fs/vfs_impl.h

  template <class T>
  using Done = std::function<void(Result<T>)>;

  // All must outlive it. `pool` runs what may block on the local disk. Before
  // it goes: Shutdown(), then stop the fetcher, the indexers, `pool`, `timers`.
  Vfs(Repo& repo, WorkerPool& pool, TimerQueue& timers,
      const VfsOptions& options);
  ~Vfs();
  Vfs(const Vfs&) = delete;
  Vfs& operator=(const Vfs&) = delete;

  // Where `status.json` comes from; set before the first call.
  void SetStatus(std::function<std::string()> render);

  // An id under which one call can be interrupted, also before it parks.
  OpId NewOp() { return parked_.Reserve(); }
  // The call ends with kCancelled unless it ended otherwise. Unknown ids are
  // ignored.
  void Interrupt(OpId op) { parked_.Interrupt(op); }
  // Instead of a call.
  void DropOp(OpId op) { parked_.Release(op); }
  // When a call that waits ends at the latest, if that is later than its time
  // by now, since what it waits for comes.
  std::optional<Clock::Time> Until(OpId op) const { return parked_.Until(op); }
  // What the call of an op waits for, for logs.
  std::string WaitsFor(OpId op) const { return parked_.WaitsFor(op); }
  // Ends every parked call with kCancelled, and every later one that would
  // park.
  void Shutdown() { parked_.Shutdown(); }

  // Each call takes an op of NewOp(), which it uses up, and from which on its
  // time counts. A known-absent name is
  // an attr with node 0 and its `valid` time.
  void Lookup(OpId op, uint64_t parent, std::string_view name,
              Done<NodeAttr> done);
  void GetAttr(OpId op, uint64_t node, Done<NodeAttr> done);

  // A folder's listing, entries made on demand. Immutable; safe to share; not
  // to be used after the Vfs.
  class Listing {
   public:
    virtual ~Listing() = default;
    virtual size_t size() const = 0;
    virtual std::string name(size_t i) const = 0;
    virtual NodeAttr attr(size_t i) const = 0;
  };
  void List(OpId op, uint64_t node, Done<std::shared_ptr<const Listing>> done);

  // What open decides. `content` is set for files whose bytes are made anew at
  // each open (.weightfs): serve those, not through the page cache.
  struct OpenFile {
    bool keep_cache = true;
    std::shared_ptr<const std::string> content;
    Repo::Sharing sharing;  // of OpenToShare
  };
  void Open(OpId op, uint64_t node, Done<OpenFile> done);
  // Whether the node's bytes are those of one object, from its start on, so
  // that the kernel may read them by itself.
  static bool IsWholeObject(uint64_t node);
  // As Open, with what the kernel may read of the node by itself; `in_use`: see
  // Repo::ShareFile. Where the cache does not answer, without. REQUIRES:
  // IsWholeObject(node).
  void OpenToShare(OpId op, uint64_t node, std::shared_ptr<CacheFile> in_use,
                   Done<OpenFile> done);
  // What the node's folder calls it. REQUIRES: IsWholeObject(node). Nothing: no
  // node of this mount.
  struct Place {
    uint64_t folder = 0;
    std::string name;
  };
  std::optional<Place> PlaceOf(uint64_t node) const;

  // Answers a read of out.size() bytes from resident memory: in `out` or where
  // they lie (fewer only at the file's end), or nothing if the read must park.
  std::optional<LentBytes> TryRead(uint64_t node, uint64_t offset,
                                   std::span<std::byte> out);
  // The bytes are valid during `done` only.
  void Read(OpId op, uint64_t node, uint64_t offset, size_t size,
            Done<std::span<const std::byte>> done);

  void ListXattrs(OpId op, uint64_t node, Done<std::vector<std::string>> done);
  // kNotFound: no such attribute (ENODATA).
  void GetXattr(OpId op, uint64_t node, std::string_view name,
                Done<std::string> done);

  FsTotals Totals() const;
  // "tensors/npy/a.npy": the node's path in the mount, for logs.
  std::string Describe(uint64_t node);

  // Nodes whose bytes come from file `file` of the snapshot: its own, and those
  // of its tensors.
  std::vector<uint64_t> NodesOfFile(uint32_t file);

  // The learned order (fs/learned_order.h): what was kept of an earlier mount,
  // once; whether there is something new to keep; and what.
  void LearnOrder(const std::vector<FileRun>& order);
  uint64_t order_touches() const;
  std::vector<FileRun> OrderToKeep() const;

  // Parked calls now.
  size_t parked() { return parked_.size(); }

 private:
  ParkedOps parked_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_FS_VFS_H_
