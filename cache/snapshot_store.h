// SnapshotStore: refs and file listings kept beside the object cache, so that a
// repository that was mounted once can be mounted again offline. Files are
// written whole and renamed into place; a file that cannot be parsed counts as
// absent and is logged.
//
// Thread-safety: safe for concurrent use, also between processes.

#ifndef WEIGHTFS_CACHE_SNAPSHOT_STORE_H_
#define WEIGHTFS_CACHE_SNAPSHOT_STORE_H_

#include <memory>
#include <string>

#include "cache/origin.h"
#include "formats/base/result.h"

namespace weightfs {

class SnapshotStore {
 public:
  // `folder` is the cache folder, which exists.
  explicit SnapshotStore(std::string folder) : folder_(std::move(folder)) {}

  // Which commit `revision` of `repo` was, when the origin was last asked.
  Result<> SaveRef(const std::string& endpoint, const std::string& repo,
                   const std::string& revision, const std::string& commit);
  // kNotFound if it was never asked.
  Result<std::string> LoadRef(const std::string& endpoint,
                              const std::string& repo,
                              const std::string& revision);

  // The listing of snapshot.commit.
  Result<> SaveListing(const std::string& endpoint, const Snapshot& snapshot);
  // kNotFound if there is none. `revision` is empty in the result.
  Result<std::shared_ptr<const Snapshot>> LoadListing(
      const std::string& endpoint, const std::string& repo,
      const std::string& commit);

 private:
  const std::string folder_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_SNAPSHOT_STORE_H_
