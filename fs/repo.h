// Repo: one repository at one commit, open: its files as objects, its weight
// sets and their indexes. What both the mount and the commands that need no
// mount work on.
//
// Each set's index is a small state machine:
//   Absent → Loading → Ready
//                    → Failed(retry at) → Loading …
// Parsers run on the indexer pool only. A shard whose bytes are wrong leaves
// the other shards' tensors; one that cannot be fetched fails the load, which
// is tried again on demand after a pause.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_FS_REPO_H_
#define WEIGHTFS_FS_REPO_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cache/fetcher.h"
#include "cache/object.h"
#include "cache/object_cache.h"
#include "cache/origin.h"
#include "cache/patient_calls.h"
#include "cache/strict_object.h"
#include "cache/verifier.h"
#include "formats/base/mutex.h"
#include "formats/base/unique_fd.h"
#include "formats/base/worker_pool.h"
#include "formats/tensor_index.h"
#include "fs/catalog.h"
#include "fs/name_tree.h"

namespace weightfs {

struct ShardIndex;

// A set whose index is ready. Immutable.
struct IndexedSet {
  TensorIndex index;
  // index.objects()[i] is file files[i] of the snapshot.
  std::vector<uint32_t> files;
  // What is wrong with the set, for index.json; empty: whole.
  std::vector<std::string> problems;
  std::unique_ptr<const NameTree> names;
  // files[i] → tensors with bytes in it, by offset, none in two of them.
  struct Extent {
    uint64_t begin;
    uint64_t end;
    uint32_t tensor;
  };
  std::vector<std::vector<Extent>> extents;
};

struct RepoOptions {
  std::chrono::milliseconds metadata_timeout{30'000};  // header reads, at least
  std::chrono::milliseconds index_retry{5'000};  // pause after a failed load
  // How long the cache may take to open a file.
  std::chrono::milliseconds disk_patience{2'000};
};

class Repo {
 public:
  // All but `cache` (null: nothing is kept) and `verifier` are required and
  // must outlive it; stop `indexers`, `verifier` and `strict` before it goes.
  struct Parts {
    Origin* origin = nullptr;
    Fetcher* fetcher = nullptr;
    ObjectCache* cache = nullptr;
    WorkerPool* indexers = nullptr;
    Verifier* verifier = nullptr;  // null: hashes are not checked
    // Not null: no byte is given to anybody, this process's own parsers
    // included, before its file is verified. REQUIRES: cache, verifier.
    StrictReads* strict = nullptr;
  };

  // Lists the origin (blocks).
  static Result<std::unique_ptr<Repo>> Open(const Parts& parts,
                                            const RepoOptions& options);

  const Snapshot& snapshot() const { return *snapshot_; }
  const Catalog& catalog() const { return catalog_; }
  const Origin& origin() const { return *parts_.origin; }

  // The file, opened at its first use and kept open while recently used. Does
  // disk I/O unless it is open; where the cache does not answer in time, the
  // object is without it, for this once. Not for FUSE threads. REQUIRES: file <
  // snapshot().files.size().
  std::shared_ptr<Object> OpenFile(uint32_t file) EXCLUDES(mutex_);
  // As OpenFile, but null if it is not open.
  std::shared_ptr<Object> FindOpenFile(uint32_t file) EXCLUDES(mutex_);

  using Indexed = Result<std::shared_ptr<const IndexedSet>>;
  // Null unless Ready.
  std::shared_ptr<const IndexedSet> FindIndex(uint32_t set) EXCLUDES(mutex_);
  // Starts a load where none runs, and calls `done` once it ended: on an
  // indexer thread, or inline if the outcome is known.
  void WhenIndexed(uint32_t set, std::function<void(const Indexed&)> done)
      EXCLUDES(mutex_);
  // Waits for it. Not for FUSE or indexer threads.
  Indexed WaitForIndex(uint32_t set) EXCLUDES(mutex_);
  // Starts loading the indexes of all shown sets, heads of all shards first.
  void LoadShownIndexes() EXCLUDES(mutex_);

  // A file's bytes for the kernel to read by itself.
  struct Shared {
    UniqueFd fd;                        // see CacheFile::ShareSealed
    std::shared_ptr<CacheFile> cached;  // where it is from
    // The same for all descriptors of one file on the disk.
    std::pair<uint64_t, uint64_t> inode;
  };
  struct Sharing {
    std::optional<Shared> sealed;
    // What is used of it is not to be trusted any more: it was found wrong, or
    // lost bytes.
    bool in_use_is_wrong = false;
  };
  // Nothing if the file is not sealed: then it will be, once it is complete and
  // its hash is right. `in_use`: what an earlier call gave and is in use still,
  // or null. Waits for the cache's disk, no longer than the disk patience. Not
  // for FUSE threads. REQUIRES: file < snapshot().files.size().
  Sharing ShareFile(uint32_t file, const std::shared_ptr<CacheFile>& in_use)
      EXCLUDES(mutex_);

  // Bytes of a file that are cached. Does disk I/O.
  uint64_t CachedBytes(uint32_t file) EXCLUDES(mutex_);
  // Whether the file's whole-file hash was right and all of it is cached. Does
  // disk I/O.
  bool IsVerified(uint32_t file) EXCLUDES(mutex_);

  // Called when a file's whole-file hash was wrong: what was read of it before
  // may be wrong. The file is fetched anew once; where that is wrong, too, its
  // reads fail with kCorrupt. Runs on the verifier's thread.
  void SetOnWrong(std::function<void(uint32_t file)> on_wrong) EXCLUDES(mutex_);

 private:
  struct SetState {
    enum class Phase { kAbsent, kLoading, kReady, kFailed };
    Phase phase = Phase::kAbsent;
    std::shared_ptr<const IndexedSet> ready;
    std::shared_ptr<const Error> error;
    Clock::Time retry_at;
    std::vector<std::function<void(const Indexed&)>> waiters;
  };

  Repo(const Parts& parts, const RepoOptions& options,
       std::shared_ptr<const Snapshot> snapshot);
  void Load(uint32_t set) EXCLUDES(mutex_);
  // Nothing if the cache did not answer in time; null: do without it.
  std::optional<std::shared_ptr<CacheFile>> OpenInCache(const FileInfo& info);
  // The file as it is read by way of `in_cache`.
  std::shared_ptr<Object> MakeObject(
      uint32_t file, const std::shared_ptr<CacheFile>& in_cache);
  void OnWrong(const FileInfo& info) EXCLUDES(mutex_);
  void AskToSeal(uint32_t file) EXCLUDES(mutex_);
  // Fetches ahead what the file's index takes.
  void PrefetchProbe(uint32_t file);
  Indexed Build(uint32_t set);
  Result<std::vector<uint32_t>> SetFiles(
      const WeightSet& set, std::unique_ptr<ShardIndex>& shard_index,
      std::vector<std::string>& problems);

  const Parts parts_;
  const RepoOptions options_;
  const std::shared_ptr<const Snapshot> snapshot_;
  const Catalog catalog_;
  PatientCalls opens_;
  std::atomic<bool> slow_cache_logged_{false};

  Mutex mutex_;
  std::vector<SetState> sets_ GUARDED_BY(mutex_);
  struct OpenEntry {
    uint32_t file;
    std::shared_ptr<Object> object;
    std::shared_ptr<CacheFile> cached;  // null: it is read without the cache
    Clock::Time opened;
    Clock::Time asked_to_seal{};
  };
  // Most recently used first.
  using OpenList = std::list<OpenEntry>;
  OpenList open_ GUARDED_BY(mutex_);
  std::unordered_map<uint32_t, OpenList::iterator> open_by_file_
      GUARDED_BY(mutex_);
  // How often a file's hash was wrong.
  std::unordered_map<uint32_t, int> wrong_ GUARDED_BY(mutex_);
  std::function<void(uint32_t)> on_wrong_ GUARDED_BY(mutex_);
};

}  // namespace weightfs

#endif  // WEIGHTFS_FS_REPO_H_
