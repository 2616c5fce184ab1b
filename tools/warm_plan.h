// WarmPlan: what `weightfs warm` fetches of a repository, and in which order:
// small files and headers, so that it can be listed, then the weights as a
// loader read them before, then the rest as it lies in the files.

#ifndef WEIGHTFS_TOOLS_WARM_PLAN_H_
#define WEIGHTFS_TOOLS_WARM_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "cache/origin.h"
#include "cache/snapshot_store.h"
#include "formats/base/result.h"
#include "fs/repo.h"

namespace weightfs {

struct WarmPlan {
  // Whole granules, each of them once. Files of the same bytes are one: the
  // first.
  std::vector<FileRun> runs;
  uint64_t bytes = 0;  // of all runs
  uint64_t files = 0;  // that have some
};

// Puts wanted bytes in an order.
//
// Thread-safety: one thread at a time.
class WarmPlanner {
 public:
  // Must outlive it.
  explicit WarmPlanner(const Snapshot& snapshot);

  // Bytes that are to be in the plan: their granules. kUnsupported: more than
  // the cache keeps of one file, or than anybody could have.
  Result<> Want(uint32_t file, uint64_t offset, uint64_t length);
  Result<> WantAll(uint32_t file);
  // What is wanted of these bytes and is in no place yet comes next.
  void Put(uint32_t file, uint64_t offset, uint64_t length);
  void PutAll(uint32_t file);
  // Puts the rest, file by file.
  WarmPlan Finish();

 private:
  const Snapshot& snapshot_;
  std::vector<uint32_t> same_as_;          // by file: the first of these bytes
  std::vector<std::vector<bool>> wanted_;  // by file and granule; not put yet
  uint64_t granules_ = 0;                  // in wanted_
  WarmPlan plan_;
};

// Files that are no weights are small up to here.
inline constexpr uint64_t kWarmSmallFile = 32 << 20;  // bytes

// `globs`: shell patterns for names of shown tensors, with or without their
// folder, as `cat` takes them; then only what matches is in the plan, with
// headers and small files. None: everything. Loads the indexes of shown sets
// for that (blocks). `learned` may be empty. kNotFound: nothing matches.
Result<WarmPlan> PlanWarm(Repo& repo, const std::vector<std::string>& globs,
                          const std::vector<FileRun>& learned);

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_WARM_PLAN_H_
