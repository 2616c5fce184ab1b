// Vfs::Impl: what fs/vfs*.cc share. Private to them.
//
// Thread-safety: as Vfs. All but `readahead_`, `order_` and the index.json
// cache is immutable after construction.

#ifndef WEIGHTFS_FS_VFS_IMPL_H_
#define WEIGHTFS_FS_VFS_IMPL_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/view/virtual_file.h"
#include "formats/writer.h"
#include "fs/learned_order.h"
#include "fs/node_id.h"
#include "fs/readahead.h"
#include "fs/repo_tree.h"
#include "fs/vfs.h"

namespace weightfs {

// Inside a pinned commit nothing changes.
inline constexpr std::chrono::seconds kForever{24 * 3600};

enum class MetaFile : uint32_t { kIndex = 0, kStatus = 1 };

class Vfs::Impl {
 public:
  using IndexPtr = std::shared_ptr<const IndexedSet>;

  Impl(Repo& repo, ParkedOps& parked, WorkerPool& pool,
       const VfsOptions& options);

  // The set whose index a node needs to be understood, if it needs one.
  std::optional<uint32_t> SetOf(const NodeId& id) const;
  // Whether the id can be one of this mount; ids come from the kernel, which
  // may hold some of a daemon before this one.
  Result<> Check(const NodeId& id, const IndexedSet* index) const;

  // `index` is the one of SetOf(id), else null; so below.
  NodeAttr AttrOf(const NodeId& id, const IndexedSet* index);
  // Nothing: no such name.
  std::optional<NodeId> Child(const NodeId& parent, std::string_view name,
                              const IndexedSet* index) const;
  std::shared_ptr<const Listing> ListingOf(const NodeId& id,
                                           const IndexPtr& index);
  std::string PathOf(const NodeId& id, const IndexedSet* index) const;
  std::vector<std::string> XattrNames(const NodeId& id) const;
  Result<std::string> Xattr(const NodeId& id, std::string_view name,
                            const IndexedSet* index);

  // A tensor file's segments. REQUIRES: its format holds its dtype.
  Result<VirtualFile> TensorFile(const NodeId& id,
                                 const IndexedSet& index) const;

  // Calls `use` with the node's index, now or once it is loaded (null if it
  // needs none), or `done` with the error if that fails. `use` uses up the op:
  // Reply() or Park().
  template <class T>
  using Use = std::function<void(OpId, IndexPtr, const Done<T>&)>;
  template <class T>
  void WithIndex(OpId op, const NodeId& id, Done<T> done, Use<T> use);
  // Answers an op that is not parked.
  template <class T>
  void Reply(OpId op, const Done<T>& done, Result<T> result) {
    parked_.Release(op);
    done(std::move(result));
  }
  // Runs `work` on the pool and answers with its result.
  template <class T>
  void OnPool(OpId op, Done<T> done, std::function<Result<T>()> work);

  // Once every shown set's index is loaded or failed.
  void RenderMeta(OpId op, MetaFile file,
                  Done<std::shared_ptr<const std::string>> done);

  // Where a node's bytes are: one object, or a plan over several.
  struct Source {
    uint32_t file;  // ordinal in the snapshot
    uint64_t offset;
    std::span<std::byte> dest;
  };
  struct Reading {
    std::vector<Source> sources;
    ReadPlan plan;
    Readahead::Extents in = ByteRange();  // in the first source's file
  };
  // What must be read to fill `out`. REQUIRES: the range is in the file.
  Result<Reading> PlanRead(const NodeId& id, const IndexedSet* index,
                           uint64_t offset, std::span<std::byte> out) const;
  uint64_t SizeOf(const NodeId& id, const IndexedSet* index) const;
  // Tells readahead of a read, and prefetches what it says.
  void ReadAhead(const Reading& reading);
  // The same for the order that an earlier mount learned.
  void FollowOrder(const Source& read, ByteRange extent);
  std::vector<FileRun> CollectOrder() const;

  Repo& repo_;
  ParkedOps& parked_;
  WorkerPool& pool_;
  const VfsOptions options_;
  const RepoTree tree_;
  std::function<std::string()> render_status_;
  Readahead readahead_;
  LearnedOrder order_;

 private:
  // REQUIRES: the read is not empty.
  Readahead::Extents ExtentsOf(uint32_t file, ByteRange read) const;
  std::optional<NodeId> SetFolderChild(const NodeId& parent,
                                       std::string_view name,
                                       const IndexedSet* index) const;
  std::optional<NodeId> NameChild(const NodeId& parent, uint32_t folder,
                                  std::string_view name,
                                  const IndexedSet& index) const;

  // By RepoTree folder: the shown set there, and whether one is at or below.
  std::vector<std::optional<uint32_t>> shown_;
  std::vector<bool> leads_to_set_;
  std::vector<std::optional<uint32_t>> set_of_file_;  // by snapshot file
  uint64_t ino_seed_ = 0;

  Mutex mutex_;
  std::shared_ptr<const std::string> index_json_ GUARDED_BY(mutex_);
};

template <class T>
void Vfs::Impl::WithIndex(OpId op, const NodeId& id, Done<T> done, Use<T> use) {
  const std::optional<uint32_t> set = SetOf(id);
  IndexPtr index = set ? repo_.FindIndex(*set) : nullptr;
  if (!set || index != nullptr) {
    const Result<> valid = Check(id, index.get());
    if (!valid.has_value()) return Reply<T>(op, done, valid.error());
    return use(op, std::move(index), done);
  }
  auto shared = std::make_shared<Done<T>>(std::move(done));
  const std::string& path = repo_.catalog().sets()[*set].path;
  const auto deadline = parked_.Started(op) + options_.metadata_timeout;
  const bool parked = parked_.Park(
      op, deadline,
      {.where = [path] { return "the index of " + path; },
       .fail =
           [shared, path](Error error) {
             (*shared)(std::move(error).AddContext("the index of " + path));
           },
       .abort = nullptr});
  if (!parked) return;
  repo_.WhenIndexed(*set,
                    [this, op, id, shared, use](const Repo::Indexed& indexed) {
                      if (!parked_.Unpark(op)) return;
                      if (!indexed.has_value())
                        return Reply<T>(op, *shared, indexed.error());
                      const Result<> valid = Check(id, indexed->get());
                      if (!valid.has_value())
                        return Reply<T>(op, *shared, valid.error());
                      use(op, *indexed, *shared);
                    });
}

template <class T>
void Vfs::Impl::OnPool(OpId op, Done<T> done, std::function<Result<T>()> work) {
  auto shared = std::make_shared<Done<T>>(std::move(done));
  const auto deadline = parked_.Started(op) + options_.metadata_timeout;
  const bool parked = parked_.Park(
      op, deadline,
      {.where = [] { return std::string("a thread that may use the disk"); },
       .fail = [shared](Error error) { (*shared)(std::move(error)); },
       .abort = nullptr});
  if (!parked) return;
  // After the pool stopped nothing parks any more: Shutdown() came before.
  pool_.Submit([this, op, shared, work = std::move(work)] {
    Result<T> result = work();
    if (parked_.Take(op)) (*shared)(std::move(result));
  });
}

}  // namespace weightfs

#endif  // WEIGHTFS_FS_VFS_IMPL_H_
