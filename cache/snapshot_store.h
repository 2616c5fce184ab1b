// SnapshotStore: refs and file listings kept beside the object cache, so that a
// repository that was mounted once can be mounted again offline. Files are
// written whole and renamed into place; a file that cannot be parsed counts as
// absent and is logged. A disk that does not answer in time is an error (kIo).
//
// Thread-safety: safe for concurrent use, also between processes.

#ifndef WEIGHTFS_CACHE_SNAPSHOT_STORE_H_
#define WEIGHTFS_CACHE_SNAPSHOT_STORE_H_

#include <chrono>
#include <memory>
#include <string>

#include "cache/origin.h"
#include "cache/patient_calls.h"
#include "formats/base/result.h"

namespace weightfs {

class SnapshotStore {
 public:
  // `folder` is the cache folder, which exists.
  explicit SnapshotStore(std::string folder,
                         std::chrono::milliseconds patience = kPatience)
      : folder_(std::move(folder)), calls_("wfs-snapshots", 1, patience) {}

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
  static constexpr std::chrono::milliseconds kPatience{5'000};

  const std::string folder_;
  PatientCalls calls_;  // all that touches the disk
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_SNAPSHOT_STORE_H_
