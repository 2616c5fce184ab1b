// SnapshotStore: refs and file listings kept beside the object cache, so that a
// repository that was mounted once can be mounted again offline; and in which
// order its files were read. Files are written whole and renamed into place; a
// file that cannot be parsed counts as absent and is logged. A disk that does
// not answer in time is an error (kIo).
//
// Thread-safety: safe for concurrent use, also between processes.

#ifndef WEIGHTFS_CACHE_SNAPSHOT_STORE_H_
#define WEIGHTFS_CACHE_SNAPSHOT_STORE_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cache/origin.h"
#include "cache/patient_calls.h"
#include "formats/base/result.h"

namespace weightfs {

// Bytes of one file of a snapshot.
struct FileRun {
  uint32_t file = 0;  // ordinal in Snapshot::files
  uint64_t offset = 0;
  uint64_t length = 0;  // not 0

  uint64_t end() const { return offset + length; }
  bool operator==(const FileRun&) const = default;
};

class SnapshotStore {
 public:
  // Of an order; a few KB in practice, 256 KiB at most.
  static constexpr size_t kMaxOrderRuns = 4096;

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

  // In which order bytes of the snapshot's files were read. kInvalid: too many
  // runs, bytes that no file has, or two runs that share some.
  Result<> SaveOrder(const std::string& endpoint, const Snapshot& snapshot,
                     const std::vector<FileRun>& order);
  // kNotFound if there is none. As SaveOrder takes them, whatever the disk
  // holds.
  Result<std::vector<FileRun>> LoadOrder(const std::string& endpoint,
                                         const Snapshot& snapshot);

 private:
  static constexpr std::chrono::milliseconds kPatience{5'000};

  const std::string folder_;
  PatientCalls calls_;  // all that touches the disk
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_SNAPSHOT_STORE_H_
